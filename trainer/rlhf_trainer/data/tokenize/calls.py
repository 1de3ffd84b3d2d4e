"""The arguments of calls, in the form that a chat template writes as they stand.

OpenAI's files hold them as JSON text, those of transformers as an object. A template made for
objects encodes text a second time or fails, one made for text fails with an object or writes
Python's spelling of it. Called by `rendering`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from transformers import PreTrainedTokenizerBase

from rlhf_trainer.data.parse.columns import CALLS, Message
from rlhf_trainer.data.tokenize.turns import TemplateRenderError, probe, templated

_KEY = "probe_9"
_OBJECT = {_KEY: "probe 10"}
_TEXT = json.dumps(_OBJECT)


@dataclass(frozen=True)
class Form:
    """What arguments may be so that a template writes them as they stand."""

    text: bool
    objects: bool

    def fitted(self, arguments: Any) -> Any:
        """The arguments as the template takes them; as they are where neither form helps."""
        if isinstance(arguments, str) and not self.text and self.objects:
            return _parsed(arguments)
        if isinstance(arguments, dict) and not self.objects and self.text:
            return json.dumps(arguments, ensure_ascii=False)
        return arguments


class CallWriter:
    """Gives a tokenizer's chat template the calls of a conversation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._forms: dict[tuple[str, bool], Form] = {}

    def fitted(self, turn: Message) -> Message:
        """The turn with the arguments of its calls in the form that the template takes."""
        written = {
            key: self._fitted_value(key, value) if key in CALLS else value
            for key, value in turn.written.items()
        }
        return replace(turn, written=written) if written != turn.written else turn

    def _fitted_value(self, key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [self._fitted_value(key, call) for call in value]
        if not isinstance(value, Mapping):
            return value
        function = value.get("function")
        if isinstance(function, Mapping):
            return {**value, "function": self._fitted_call(key, function, nested=True)}
        return self._fitted_call(key, value, nested=False)

    def _fitted_call(self, key: str, call: Mapping[str, Any], *, nested: bool) -> Mapping[str, Any]:
        if not isinstance(call.get("arguments"), str | dict):
            return call
        form = self._forms.get((key, nested))
        if form is None:
            form = self._forms[key, nested] = self._form(key, nested)
        return {**call, "arguments": form.fitted(call["arguments"])}

    def _form(self, key: str, nested: bool) -> Form:
        """What the template makes of a call in either form."""
        text = self._probed(key, nested, _TEXT)
        objects = self._probed(key, nested, _OBJECT)
        return Form(text=_TEXT in text, objects=_KEY in objects and str(_OBJECT) not in objects)

    def _probed(self, key: str, nested: bool, arguments: Any) -> str:
        """What the template writes for a call; nothing where it fails."""
        call: dict[str, Any] = {"name": "probe", "arguments": arguments}
        if nested:
            # Mistral's templates ask for an id of nine characters.
            call = {"id": "probe0009", "type": "function", "function": call}
        turn = {"role": "assistant", "content": None, key: [call] if key == "tool_calls" else call}
        try:
            return templated(self._tokenizer, [*probe(), turn], generation_prompt=False)
        except TemplateRenderError:
            return ""


def _parsed(text: str) -> Any:
    """The object that a JSON text holds, or else the text."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
