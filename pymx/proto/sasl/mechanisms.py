"""The mechanisms that are offered, by their registered names, best first."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pymx.proto.sasl.login import Login
from pymx.proto.sasl.mechanism import Mechanism
from pymx.proto.sasl.plain import Plain

MECHANISMS: Mapping[str, Callable[[], Mechanism]] = {"PLAIN": Plain, "LOGIN": Login}
