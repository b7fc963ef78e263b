"""The paper's CIFAR-10 experiments by name (`python -m resnet_jax.reproduce`).

`experiments` says what they are, `child` trains and measures one (`measure`), `runner` runs them all, `results` keeps rows
and curves, `report` draws tables and pictures.
"""
