"""Logs: a fixed sentence and fields, one JSON object a line (or colours on a terminal), the request id in all."""

import logging
import sys

import structlog


def configure(*, level: str = "info", terminal: bool | None = None) -> None:
    """Set up structlog for a process. `terminal` None means: colours where standard error is one."""
    colours = sys.stderr.isatty() if terminal is None else terminal
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
            *(() if colours else (structlog.processors.format_exc_info,)),
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
            if colours
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
