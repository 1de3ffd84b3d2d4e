"""The public list is complete."""

from collections.abc import Iterator

import rlhf_api.v1alpha1 as public
from rlhf_api.contract import Contract


def models(base: type[Contract] = Contract) -> Iterator[type[Contract]]:
    for model in base.__subclasses__():
        if model.__module__.startswith("rlhf_api."):
            yield model
        yield from models(model)


def test_every_name_is_there_once() -> None:
    assert all(hasattr(public, name) for name in public.__all__)
    assert len(public.__all__) == len(set(public.__all__))


def test_every_model_is_public() -> None:
    assert {model.__name__ for model in models()} <= set(public.__all__)
