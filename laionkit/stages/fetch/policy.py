"""A FetchConfig as the policy that the HTTP client obeys."""

from collections.abc import Iterable
from functools import partial

from laionkit.backends.http.policy import Denied, Policy
from laionkit.core.schemas import Reason
from laionkit.ops.consent import ALL_ALLOWED, Robots, find_opt_out, parse_robots
from laionkit.ops.urls import UrlError, checked_url, is_public
from laionkit.stages.fetch.agent import AGENT_TOKEN
from laionkit.stages.fetch.config import FetchConfig


def make_policy(config: FetchConfig) -> Policy:
    """The rules that this config sets."""
    return Policy(
        admit=partial(_admit, allow_private=config.allow_private),
        is_public=_any_address if config.allow_private else is_public,
        judge=partial(
            _judge,
            directives=frozenset(d.strip().lower() for d in config.opt_out_directives),
            x_robots_tag=config.x_robots_tag,
            tdm=config.tdm_reservation,
        ),
        robots=_rules if config.robots_txt else None,
    )


def _admit(url: str, allow_private: bool) -> str | Denied:
    try:
        return checked_url(url, allow_private=allow_private)[0]
    except UrlError as error:
        return Denied(error.reason, error.detail)


def _any_address(address: str) -> bool:
    return True


def _judge(
    headers: Iterable[tuple[str, str]],
    directives: frozenset[str],
    x_robots_tag: bool,
    tdm: bool,
) -> Denied | None:
    found = find_opt_out(
        headers, AGENT_TOKEN, directives=directives, x_robots_tag=x_robots_tag, tdm=tdm
    )
    if found is None:
        return None
    return Denied(Reason.OPTED_OUT, f"{found.header}: {found.value}", found.as_json())


def _rules(status: int, text: str) -> Robots:
    """RFC 9309, 2.3.1: where there is no file, everything is allowed."""
    return parse_robots(text, AGENT_TOKEN) if 200 <= status < 300 else ALL_ALLOWED
