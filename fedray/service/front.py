"""Import path of `guard` that deployed clusters name; see `http_limits`."""

from fedray.service.http_limits import guard as guard
