"""The HTTP endpoint: see a cache, steer it, and ask it why."""

from .application import app
from .config import AdminConfig
from .http_figures import HttpFigures
from .server import AdminServer, serve
from .subject import Subject

__all__ = ["AdminConfig", "AdminServer", "HttpFigures", "Subject", "app", "serve"]
