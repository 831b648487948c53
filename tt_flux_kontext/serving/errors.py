"""What went wrong with a request, in OpenAI's form."""

from starlette.responses import JSONResponse

LEFT = 499  # status, as nginx logs it: the client left, and nobody reads the answer


class ApiError(Exception):
    """An answer that is no picture.

    Args:
        status: HTTP's.
        message: for a person.
        param: the field of the request that is wrong.
        code: for a program.
        retry_after: seconds after which the same request may do better. Without it clients are told not to retry.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def body(self) -> dict:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {"x-should-retry": "false"}  # OpenAI's clients would send the same twice more
        if self.retry_after is not None:
            headers = {"retry-after": str(self.retry_after)}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status in (408, 413):  # the rest of the upload isn't read
            headers["connection"] = "close"
        return JSONResponse(self.body, self.status, headers)


def unexpected() -> ApiError:
    """A fault of the server's own."""
    return ApiError(500, "The server failed; its log says more.", code="server_failed")


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """What the sender has to change."""
    return ApiError(400, message, param=param, code=code)
