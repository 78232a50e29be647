"""Who we say we are to servers: honestly, and with a way to reach the user."""

from importlib.metadata import PackageNotFoundError, version

AGENT_TOKEN = "laionkit"


def user_agent(contact: str) -> str:
    """The User-Agent header; `contact` is a URL or an e-mail address."""
    try:
        number = version("laionkit")
    except PackageNotFoundError:
        number = "dev"
    return f"{AGENT_TOKEN}/{number}" + (f" (+{contact})" if contact else "")
