"""Properties exchanged between images, in the scale in which one looks at them, and what a classifier says of it."""

from exmap.exchange.looks import Looks, Pixels, Predict, Scale
from exmap.exchange.properties import (
    GIVEN,
    PROPERTIES,
    OfRows,
    Property,
    Region,
    exchange_background,
    exchange_brightness,
    exchange_colour,
    exchange_place,
    exchangeable,
    paired,
)
from exmap.exchange.trial import Trial, asked

__all__ = [
    "GIVEN",
    "PROPERTIES",
    "Looks",
    "OfRows",
    "Pixels",
    "Predict",
    "Property",
    "Region",
    "Scale",
    "Trial",
    "asked",
    "exchange_background",
    "exchange_brightness",
    "exchange_colour",
    "exchange_place",
    "exchangeable",
    "paired",
]
