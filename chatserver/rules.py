"""What is kept of a channel: declared once for the channels of an application, by their names.

    Hub(rules={
        "chat": {"history_size": 1000, "history_ttl": 86400},
        "game:*": {"presence": True},           # every channel whose name begins with "game:"
    })

They are the same for every broker, and in the setting `rules`, where they are JSON.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, TypeAlias, TypedDict

import msgspec
from msgspec import Meta, Struct, structs

__all__ = ["Rules", "RulesByName", "RulesFor", "SomeRules", "rules_by_name"]


class Rules(Struct, frozen=True, kw_only=True, gc=False, forbid_unknown_fields=True):
    """What is kept of a channel.

    Attributes:
        history_size: Publications kept at most; 0 keeps none.
        history_ttl: Seconds for which a publication is kept at most.
        presence: Whether every client is entered into the presence, whatever its class says.
        join_leave: Whether subscribers get a `Joined` or `Left` when a client enters or leaves.
    """

    history_size: Annotated[int, Meta(ge=0)] = 100
    history_ttl: Annotated[float, Meta(ge=0)] = 300.0
    presence: bool = False
    join_leave: bool = False


class SomeRules(TypedDict, total=False):
    """The rules of some channels; what is left out is as for all others. See `Rules`."""

    history_size: int
    history_ttl: float
    presence: bool
    join_leave: bool


#: Rules by the name of a channel, or by the beginning of names: "game:*".
RulesByName: TypeAlias = Mapping[str, SomeRules]
#: The rules of a channel, by its name. Called often: it answers from memory.
RulesFor: TypeAlias = Callable[[str], Rules]


def rules_by_name(declared: RulesByName, others: RulesFor) -> RulesFor:
    """A function that finds the rules of a channel.

    Its own name counts before a pattern, and a longer pattern before a shorter one.

    Args:
        declared: The rules by name or pattern.
        others: Says what these leave out, and the rules of channels without any here.

    Raises:
        ValueError: These are no mapping; or a name is empty or has a "*" elsewhere than at its
            end, or its rules are unknown or out of bounds. The sentence names them.
    """
    if not isinstance(declared, Mapping):
        raise ValueError(f"expected rules by the names of channels, got {declared!r}")
    complete = {name: _complete(name, some, others) for name, some in declared.items()}
    exact = {name: rules for name, rules in complete.items() if not name.endswith("*")}
    patterns = sorted(complete.keys() - exact.keys(), key=len, reverse=True)
    prefixes = [(pattern[:-1], complete[pattern]) for pattern in patterns]

    def rules_for(channel: str) -> Rules:
        if channel in exact:
            return exact[channel]
        for prefix, rules in prefixes:
            if channel.startswith(prefix):
                return rules
        return others(channel)

    return rules_for


def _complete(name: str, some: SomeRules, others: RulesFor) -> Rules:
    if not name or "*" in name[:-1]:
        raise ValueError(f"expected the name of a channel, or its beginning and *, got {name!r}")
    try:
        given = msgspec.convert(some, dict[str, object])
        return msgspec.convert({**structs.asdict(others(name)), **given}, Rules)
    except msgspec.ValidationError as error:
        raise ValueError(f"the rules of {name!r} can't be used: {error}") from None
