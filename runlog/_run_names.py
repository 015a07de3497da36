"""
Names of runs: readable ones for runs that were given none, and templates filled in from arguments.

`runlog.runs` uses both. No randomness, no clock.
"""

from __future__ import annotations

import inspect
import string
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import uuid
    from collections.abc import Callable

MAX_RUN_NAME_LENGTH = 200
"""Most characters of a name that was made from arguments, which can be of any size."""


class RunNameTemplate:
    """
    A run name with ``{placeholders}`` for the parameters of a function.

    Args:
        template: In the syntax of `str.format`; placeholders name parameters.
        fn: The function whose calls are named.

    Raises:
        ValueError: If a placeholder is no parameter of *fn*, or *template* is no template.
    """

    def __init__(self, template: str, fn: Callable[..., Any]) -> None:
        self.template = template
        self._signature: inspect.Signature | None = None
        placeholders = _placeholders_of(template)
        if not placeholders:
            return
        self._signature = inspect.signature(fn)
        parameters = self._signature.parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return
        for name in placeholders:
            if name not in parameters:
                function = getattr(fn, "__qualname__", None) or repr(fn)
                raise ValueError(
                    f"run_name {template!r} has the placeholder {{{name}}}, which is no parameter of "
                    f"{function}; its parameters: {', '.join(parameters) or 'none'}"
                )

    def fill(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """
        Return the name for one call, at most `MAX_RUN_NAME_LENGTH` characters.

        Raises:
            TypeError: If the arguments do not fit the function.
            ValueError: If an argument lacks what the template asks of it.
        """
        values: dict[str, Any] = {}
        if self._signature is not None:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            values.update(bound.arguments)
            for name, parameter in self._signature.parameters.items():
                if parameter.kind is parameter.VAR_KEYWORD:
                    values.update(values[name])
        try:
            return self.template.format_map(values)[:MAX_RUN_NAME_LENGTH]
        except Exception as error:
            raise ValueError(
                f"run_name {self.template!r} cannot be filled in: {type(error).__name__}: {error}"
            ) from error


def _placeholders_of(template: str) -> list[str]:
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ValueError(f"run_name {template!r} is no template: {error}; a brace is written twice") from None
    return [field.partition(".")[0].partition("[")[0] for field in fields]


def readable_name(run_id: uuid.UUID) -> str:
    """
    Return a name such as ``swift-otter``, made from an id: the same for the same id.

    Not unique. Draws no random numbers, so that a program which seeds `random`
    gets the numbers that it always did.
    """
    rest, adjective = divmod(run_id.int, len(ADJECTIVES))
    return f"{ADJECTIVES[adjective]}-{ANIMALS[rest % len(ANIMALS)]}"


ADJECTIVES = (  # noqa: SIM905 - words are read more easily so
    "able agile amber ample apt arctic autumn azure bold brave breezy brief bright brisk bronze calm "
    "candid cedar chilly clear clever coral cosy crimson crisp curious dapper daring deft dusky eager "
    "early earnest easy ebony exact fair fancy fast fern fine fleet fond frank fresh frosty gallant "
    "gentle giddy glad golden grand green hardy hazel honest humble ideal indigo ivory jade jolly jovial "
    "keen kind lively loyal lucid lucky lunar mellow merry mild mint misty modest neat nimble noble "
    "novel olive opal patient pearly placid plucky polite prime proud quick quiet rapid ready rosy royal "
    "ruby rustic sage sandy serene sharp shiny silent silver sleek smart snowy solar solid spry steady "
    "stellar sturdy sunny swift tidy topaz tranquil trim true upbeat velvet violet vivid warm wary whole "
    "wild windy wise witty young zesty"
).split()
"""First halves of readable names."""

ANIMALS = (  # noqa: SIM905 - the same
    "ant badger bat bear beaver bee beetle bison boar bobcat buffalo camel caribou carp cat chamois "
    "cheetah cod condor coot cormorant cougar crab crane cricket crow curlew deer dingo dolphin dormouse "
    "dove dragonfly duck eagle egret eland elk emu ermine falcon ferret finch firefly fox frog gazelle "
    "gecko gibbon goose grebe grouse gull hare hawk hedgehog heron herring hornet horse hound ibex ibis "
    "iguana impala jackal jaguar jay kestrel kite kiwi koala koi kudu lark lemur leopard linnet lion "
    "lizard llama lobster loon lynx macaw magpie mallard manatee marmot marten merlin mole moose moth "
    "mouse mule narwhal newt numbat ocelot octopus okapi oriole oryx osprey otter owl ox panda panther "
    "parrot pelican penguin perch pika pike plover pony puffin puma quail rabbit raccoon raven robin "
    "rook salmon seal serval shrew shrike skua skylark sloth snail snipe sparrow squid stork swallow "
    "swan swift tapir tern thrush tiger toad toucan trout tuna turtle viper vole walrus wasp weasel "
    "whale wolf wombat woodcock wren yak zebra"
).split()
"""Second halves of readable names."""
