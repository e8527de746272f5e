"""Named examples of JSON bodies, which `/docs` offers in a list. Each is a complete request."""

from typing import Any

# A house of 64 x 64 pixels, and a mask of the house.
IMAGE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAEAAAABABAMAAABYR2ztAAAAMFBMVEV4tOtalka0PDLr3L763Fo8bqAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAADm5XuSAAAAqUlEQVR42u2UTQ4CIQxGH5W9zg0ar+AFOLiLOYI3GQ+giRuMAdquJo5Rm/BXXr5SUoDtLbk7uXAG"
    "xAUKlAjItUkgACUKUW1LYK6dC9xqE1dyriq9HTU+g/SeHlDQCJDBJYNAJ2Hh4gPaDADsmhSfZba/mgpieWUM0E4d1hRTLDUJE27cipVx83BOr+n98g"
    "lF+0Ygd+sF0mHlEJP9dU3fdZNp+omC+QNrAQ8sJw2rwys+gQAAAABJRU5ErkJggg=="
)
MASK = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQAAAACCEkxzAAAAG0lEQVR42mNgoCHg////HwMDE4w7yqAiY5AAABaSA1g6"
    "I1eAAAAAAElFTkSuQmCC"
)

Examples = dict[str, dict[str, Any]]

IMG2IMG: Examples = {
    "plain": {
        "summary": "Change the style of an image",
        "value": {"image": IMAGE, "prompt": "a watercolor painting", "strength": 0.6},
    },
    "mask": {
        "summary": "Regenerate the white part of a mask",
        "value": {"image": IMAGE, "mask": MASK, "prompt": "a tree"},
    },
    "controls": {
        "summary": "Follow the edges of an image",
        "value": {"prompt": "a house in winter", "controls": [{"type": "canny", "image": IMAGE}]},
    },
    "edit": {
        "summary": "Follow an instruction, with a model for edits",
        "value": {"image": IMAGE, "instruction": "make it night"},
    },
    "upscale": {
        "summary": "Enlarge an image",
        "value": {"image": IMAGE, "prompt": "a house", "upscale": 4},
    },
}
CONTROL_MAP: Examples = {
    "edges": {"summary": "The edges of an image", "value": {"image": IMAGE, "type": "canny"}},
}
FIND_MASK: Examples = {
    "words": {"summary": "The mask of a thing, by words", "value": {"image": IMAGE, "text": "the house", "grow": 8}},
}
UPLOAD: Examples = {"image": {"summary": "A PNG as a data: URI", "value": {"image": IMAGE}}}
