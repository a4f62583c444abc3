"""Import path of the HTTP header guard that deployed clusters name."""

from fedray.service.http_limits import guard as guard
