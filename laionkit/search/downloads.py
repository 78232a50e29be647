"""The picture behind a URL that somebody asks with: through fetch's client, as guarded as there.

robots.txt and opt-out headers are not asked: they speak of crawling and training, and this is one
picture that a person names and nobody keeps.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from laionkit.backends.http.answers import Answer
from laionkit.backends.http.client import ClientLimits, HttpClient
from laionkit.backends.http.policy import Denied, Policy
from laionkit.core.errors import InputError
from laionkit.core.schemas import Reason
from laionkit.ops.urls import UrlError, checked_url, is_public


def is_url(image: object) -> bool:
    """Whether a query image is named by a URL."""
    return isinstance(image, str) and "://" in image


def download_picture(url: str, *, allow_private: bool = False) -> bytes:
    """The bytes behind a URL: 10 seconds, 32 MiB and five redirects at most.

    Private addresses are refused on every hop unless allowed. Raises InputError with the reason.
    """
    with ThreadPoolExecutor(1) as thread:  # a notebook's own thread already runs a loop
        answer = thread.submit(asyncio.run, _download(url, _policy(allow_private))).result()
    if answer.body is None:
        allow = answer.reason is Reason.ADDRESS_REFUSED
        hint = "; --allow-private takes addresses of your own network" if allow else ""
        raise InputError(f"the query image {url}: {answer.reason}: {answer.detail}{hint}")
    return answer.body


async def _download(url: str, policy: Policy) -> Answer:
    async with HttpClient(ClientLimits(), policy) as client:
        return await client.fetch(url)


def _policy(allow_private: bool) -> Policy:
    return Policy(
        admit=partial(_admit, allow_private=allow_private),
        is_public=(lambda _: True) if allow_private else is_public,
        judge=lambda _: None,
    )


def _admit(url: str, allow_private: bool) -> str | Denied:
    try:
        return checked_url(url, allow_private=allow_private)[0]
    except UrlError as error:
        return Denied(error.reason, error.detail)
