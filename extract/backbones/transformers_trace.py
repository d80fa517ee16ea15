"""One forward pass of a model of Hugging Face transformers, recorded: where its blocks, its patches, its final norm and its pooling are.

Names differ from class to class and from version to version of the library, so the places are found by what goes in and what comes out.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from featcache.extraction.backbones.base import TokenLayout
from featcache.store.errors import BackboneError

_TOLERANCE = 1e-5
_CLASS_TOKEN_NAMES = ("cls_token", "class_token", "class_embedding", "class_embeddings", "cls")


class UnsuitableModelError(Exception):
    """A model cannot be a backbone; the text is the end of a sentence that begins with the model's name."""


@dataclass
class Call:
    """One call of a module outside the blocks."""

    name: str
    module: nn.Module
    entered: Tensor
    left: Tensor


@dataclass
class BlockList:
    """A list of modules of one class, and what its members saw in the pass."""

    name: str
    members: list[nn.Module]
    order: list[int] = field(default_factory=list)
    """Indices of the members, call by call."""
    shapes: set[tuple[int, ...]] = field(default_factory=set)
    """Shapes of everything that entered or left a member."""
    arguments: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)
    """Arguments of the first and of the last member."""
    entered: Tensor | None = None
    """Tokens that entered the first member."""
    left: Tensor | None = None
    """Tokens that left the last member."""
    calls_before: int = 0
    """Calls of modules outside that were through when the first member was."""


@dataclass(frozen=True)
class Trace:
    """What a pass of images ``[B, 3, H, W]`` showed."""

    blocks: BlockList
    layout: TokenLayout
    width: int
    output: Any
    """The library's own output object."""
    calls: list[Call]
    """Calls of modules outside the blocks that take and give tensors, in order."""


def trace(module: nn.Module, run: Callable[[Tensor], Any], images: Tensor) -> Trace:
    """Run a model once and find its list of blocks and its grid of patches.

    Args:
        module: the model.
        run: how it is called with images.
        images: ``[B, 3, H, W]``.

    Raises:
        UnsuitableModelError: it has no list of blocks that all see the same tokens.
    """
    lists = {name: BlockList(name, members) for name, members in _lists(module)}
    calls: list[Call] = []
    with _hooks() as handles:
        for block_list in lists.values():
            for index, member in enumerate(block_list.members):
                handles.append(
                    member.register_forward_hook(_watch(block_list, index, calls), with_kwargs=True)
                )
        inside = {id(part) for one in lists.values() for member in one.members for part in member.modules()}
        for name, part in module.named_modules():
            if id(part) not in inside or isinstance(part, nn.Conv2d):
                handles.append(part.register_forward_hook(_note(name, calls), with_kwargs=True))
        output = run(images)
    blocks = _chosen(module, lists)
    assert blocks.entered is not None
    _, num_tokens, width = blocks.entered.shape
    grid = _grid(calls[: blocks.calls_before])
    prefix = num_tokens - grid[0] * grid[1]
    if prefix < 0:
        raise UnsuitableModelError(
            f"is no plain vision transformer: {blocks.name} sees {num_tokens} tokens of {grid[0]} x {grid[1]} patches"
        )
    has_class_token = _class_token(module, width) is not None and prefix > 0
    return Trace(blocks, TokenLayout(has_class_token, prefix - has_class_token, grid), width, output, calls)


def first_tensor(values: Any) -> Tensor | None:
    """Return a tensor, or the first one of a tuple; None if there is none."""
    value = values[0] if isinstance(values, tuple | list) and values else values
    return value if isinstance(value, Tensor) else None


def same(first: Tensor | None, second: Tensor | None) -> bool:
    """Return whether two tensors agree but for rounding."""
    if first is None or second is None or first.shape != second.shape:
        return False
    return bool((first - second).abs().max() <= _TOLERANCE * second.abs().max())


@torch.no_grad()
def check_layout(
    module: nn.Module, run: Callable[[Tensor], Any], found: Trace, size: tuple[int, int]
) -> None:
    """Check the order of the tokens that enter the first block: class token, registers, then patches row by row.

    A patch of an image is changed, and the token that changes most has to be that of the patch; so shuffled patches, as masked
    autoencoders make them, are noticed. Tokens before the patches must not depend on the image, and of them the first alone on
    the parameter that is called the class token.

    Raises:
        UnsuitableModelError: the order is another one.
    """
    layout = found.layout
    generator = torch.Generator().manual_seed(2)
    height, width = size
    image = torch.randn(1, 3, height, width, generator=generator)
    plain = _entered(found, run, image)
    rows, columns = layout.grid
    for row, column in ((0, columns - 1), (rows - 1, 0)):
        top, left = row * height // rows, column * width // columns
        changed = image.clone()
        changed[:, :, top : top + max(1, height // rows), left : left + max(1, width // columns)] += 3.0
        moved = (_entered(found, run, changed) - plain).abs().amax(-1)[0]
        expected = layout.num_prefix_tokens + row * columns + column
        if int(moved.argmax()) != expected or bool((moved[: layout.num_prefix_tokens] != 0).any()):
            raise UnsuitableModelError(
                f"has its tokens in another order than class token, registers, patches row by row (patch {row}, {column} of "
                f"{rows} x {columns} is token {int(moved.argmax())}, expected {expected})"
            )
    parameter = _class_token(module, found.width)
    if layout.has_class_token and parameter is not None:
        kept = parameter.detach().clone()
        parameter.add_(1.0)
        try:
            moved = (_entered(found, run, image) - plain).abs().amax(-1)[0]
        finally:
            parameter.copy_(kept)
        if moved.nonzero().flatten().tolist() != [0]:
            raise UnsuitableModelError("has a class token that is not its first token")


class _Stop(Exception):  # noqa: N818 - no error: it ends a pass whose rest is not needed
    pass


def _entered(found: Trace, run: Callable[[Tensor], Any], image: Tensor) -> Tensor:
    """Return the tokens ``[1, N, D]`` that enter the first block."""
    seen: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = _entering(args, kwargs)
        assert tokens is not None
        seen.append(tokens.clone())
        raise _Stop

    with _hooks() as handles:
        handles.append(found.blocks.members[0].register_forward_pre_hook(stop, with_kwargs=True))
        with suppress(_Stop):
            run(image)
    return seen[0]


def _class_token(module: nn.Module, width: int) -> Tensor | None:
    """Return the parameter that is called the class token; None if there is none."""
    for name, parameter in module.named_parameters():
        if name.rpartition(".")[2] in _CLASS_TOKEN_NAMES and parameter.numel() == width:
            return parameter
    return None


def _lists(module: nn.Module) -> Iterator[tuple[str, list[nn.Module]]]:
    """Yield lists whose members are of one class and have parts of their own, as blocks do."""
    for name, part in module.named_modules():
        if not isinstance(part, nn.ModuleList | nn.Sequential) or not len(part):
            continue
        members = list(part)
        if len({type(member) for member in members}) == 1 and all(
            any(member.children()) for member in members
        ):
            yield name, members


def _chosen(module: nn.Module, lists: dict[str, BlockList]) -> BlockList:
    """Return the longest list whose members ran once each, in order, on the same tokens ``[B, N, D]``; the first of equally long ones."""
    if not any(one.order for one in lists.values()):
        raise UnsuitableModelError("has no list of blocks")
    right = [
        one
        for one in lists.values()
        if one.order == [*range(len(one.members))]
        and len(one.shapes) == 1
        and len(next(iter(one.shapes))) == 3
        and one.left is not None
    ]
    if not right:
        raise UnsuitableModelError(
            f"is no plain vision transformer with the same tokens in all layers ({_forms(lists)})"
        )
    return max(right, key=lambda one: len(one.members))


def _forms(lists: dict[str, BlockList]) -> str:
    """Describe the longest list of blocks that ran."""
    longest = max((one for one in lists.values() if one.order), key=lambda one: len(one.members))
    if longest.order != [*range(len(longest.members))]:
        return f"{longest.name} does not run once, in order"
    shapes = " and ".join(str([*shape]) for shape in sorted(longest.shapes)[:2]) or "no tensors"
    return f"{longest.name} sees {shapes}"


def _watch(block_list: BlockList, index: int, calls: list[Call]) -> Callable[..., None]:
    last = len(block_list.members) - 1

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        block_list.order.append(index)
        tensors = _entering(args, kwargs), first_tensor(output)
        block_list.shapes.update(tuple(tensor.shape) for tensor in tensors if tensor is not None)
        if index in (0, last):
            block_list.arguments[index] = args, kwargs
        if index == 0:
            block_list.entered, block_list.calls_before = tensors[0], len(calls)
        if index == last:
            block_list.left = tensors[1]

    return hook


def _note(name: str, calls: list[Call]) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        entered, left = _entering(args, kwargs), first_tensor(output)
        if entered is not None and left is not None:
            calls.append(Call(name, module, entered, left))

    return hook


def _entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)


def _grid(calls: list[Call]) -> tuple[int, int]:
    """Return rows and columns of patches, from the last convolution before the blocks."""
    for call in reversed(calls):
        if isinstance(call.module, nn.Conv2d) and call.left.ndim == 4:
            rows, columns = call.left.shape[-2:]
            return rows, columns
    raise UnsuitableModelError("has no convolution that makes one token of each patch")


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def require_images_alone(module: nn.Module) -> None:
    """Refuse a model that takes something else than images, or images with something else.

    Raises:
        UnsuitableModelError: it does.
    """
    main = getattr(module, "main_input_name", "pixel_values")
    if main != "pixel_values":
        raise UnsuitableModelError(f"takes {main}, not images")
    needed = [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and name != "pixel_values"
    ]
    if {"spatial_shapes", "pixel_attention_mask"} & {*needed}:
        raise UnsuitableModelError(
            "takes images of any shape (NaFlex), and a cache holds one number of patches"
        )
    if needed:
        raise UnsuitableModelError(f"takes {', '.join(needed)} along with images")


def refused(name: str, error: UnsuitableModelError) -> BackboneError:
    """Return the error that a user sees."""
    return BackboneError(f"{name} is not supported: it {error}")
