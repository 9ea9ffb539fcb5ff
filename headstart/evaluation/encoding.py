"""Encode pictures as text for an HTML page."""

from __future__ import annotations

import base64
import io

from PIL import Image


def base64_text(data: bytes) -> str:
    """Return `data` in base64, for a data: URL."""
    return base64.b64encode(data).decode()


def encoded(picture: Image.Image) -> bytes:
    """Return a picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
