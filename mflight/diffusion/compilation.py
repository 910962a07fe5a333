"""Compile the blocks of a UNet one by one: the parts between them, and attention recording, stay eager."""

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D

RECOMPILE_LIMIT = 64
"""Graphs that dynamo may keep for one block type. The UNet of Stable Diffusion 1.4 has 12 resnet blocks of
different widths, above dynamo's limit of 8, after which it silently runs them eagerly."""


def compile_blocks(unet: UNet2DConditionModel, backend: str) -> None:
    """Compile each transformer and resnet block of a UNet in place ("regional compilation").

    Blocks of equal widths share one graph, so this is several times quicker to compile than the whole UNet
    and about as fast to run. The first call at a new latent shape compiles; from the second shape on the
    graph is made for any. Attention recording breaks the graph at the reporting layer, and nothing is
    compiled anew when another recorder listens.

    Args:
        unet: the UNet.
        backend: name of a torch compiler, such as ``"inductor"``.

    Raises:
        ValueError: if torch has no such compiler.

    Source:
        PyTorch recipes, "Reducing torch.compile cold start compilation time with regional compilation".
    """
    known = torch._dynamo.list_backends(exclude_tags=())
    if backend not in known:
        raise ValueError(f"compile_backend must be one of torch's {known}, got {backend!r}")
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock | ResnetBlock2D):
            module.compile(backend=backend)
