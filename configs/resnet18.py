"""ImageNet, ResNet-18, the paper's recipe (section 3.4, Table 1).

Command:         python train.py --config=configs/resnet18.py --config.data.root=PATH
Hardware:        8 GPUs or a TPU slice (256 images per step); one large GPU will do
Expected time:   not measured yet
Expected result: 27.88 % top-1 error with option A, 10 crops (Table 2 of the paper); 30.43 % with option B, one
                 centre crop (facebookarchive/fb.resnet.torch, scale and aspect-ratio augmentation).
                 Ours is not measured yet

PATH holds train/<wnid>/*.JPEG and val/<wnid>/*.JPEG. Evaluation is on the centre 224 x 224 of a shorter side of 256.
Batch norm is over the whole batch of 256; the authors' eight GPUs normalised 32 images each:
--config.batch_norm.group_size=32. The rate drops at 150k, 300k and 450k of 600k steps: our reading of Fig. 4, since the
paper names no steps.

Shortcut B, as usual since; Table 2 of the paper has option A: --config.model.shortcut=A.
"""

from resnet_jax import recipes
from resnet_jax.config import TrainConfig


def get_config() -> TrainConfig:
    return recipes.paper_imagenet("resnet18")
