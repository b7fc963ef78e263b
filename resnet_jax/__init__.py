"""resnet_jax: "Deep Residual Learning for Image Recognition" (He, Zhang, Ren, Sun 2015) in JAX and Flax.

How a run flows, left to right; a module depends only on those to its left (and on `config`):

    config -> models | data -> parallel -> training, evaluation -> train.py, eval.py
"""

__version__ = "0.1.0"
