"""Real applications: models that ship inside packages, each with the data and the metric of its own use."""

from __future__ import annotations

from apps import (
    bodies,
    captchas,
    classes,
    documents,
    file_types,
    ocr_pages,
    ocr_rec,
    sentences,
    speakers,
    super_resolution,
    voice,
)
from apps.base import Application

MODULES = (
    *(file_types, ocr_rec, ocr_pages, documents, voice, sentences),
    *(classes, bodies, captchas, speakers, super_resolution),
)
APPLICATIONS: dict[str, Application] = {app.name: app for module in MODULES for app in module.APPLICATIONS}
