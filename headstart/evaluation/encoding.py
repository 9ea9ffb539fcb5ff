"""Pictures as text in an HTML page."""

from __future__ import annotations

import base64
import io

from PIL import Image


def base64_text(data: bytes) -> str:
    """Base64 of `data` for a data: address."""
    return base64.b64encode(data).decode()


def encoded(picture: Image.Image) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
