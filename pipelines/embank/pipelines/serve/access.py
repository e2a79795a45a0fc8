"""Who may change what a server serves: this machine, or whoever knows the token."""

import hmac
import ipaddress

from starlette.requests import Request

from embank.pipelines.serve.refused import RefusedRequestError

_PROXIED = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


def refuse_strangers(request: Request, *, token: str | None) -> None:
    """Refuses a request to reload from who may not.

    Without a token the connection must come from this machine, to a name of this machine (a web page that a browser
    here shows has another one), and through no proxy, behind which anybody may be.

    Args:
        request: any.
        token: that the server was started with.

    Raises:
        RefusedRequestError: 401 for no token or a wrong one, 403 for another machine.
    """
    if token is not None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
            raise RefusedRequestError(
                401, "token", "reloading needs the server's token; send it as `Authorization: Bearer TOKEN`"
            )
        return
    is_direct = not any(name in request.headers for name in _PROXIED)
    peer = request.client.host if request.client else ""
    if not (is_direct and is_loopback(peer) and is_loopback(_host(request.headers.get("host", "")))):
        raise RefusedRequestError(
            403,
            "access",
            "only this machine may reload, directly and by a loopback address; start the server with --token to reload "
            "from elsewhere",
        )


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _host(header: str) -> str:
    """`[::1]:8000` and `localhost:8000` without their ports."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
