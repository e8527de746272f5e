"""Decodes images that clients have sent to the bucket, as the API server decodes those of requests: in a sandbox."""

from img2img.domain.presigned_upload import PresignedUpload
from img2img.domain.spec import Img2ImgSpec
from img2img.errors import ImageError, InputInvalid, JobError, Unavailable, UnsupportedMedia
from img2img.imaging.decode import encode_png
from img2img.imaging.sandbox_pool import DecoderPool


def decode_sent_image(decoders: DecoderPool, image: bytes, upload: PresignedUpload, spec: Img2ImgSpec) -> bytes:
    """Return the PNG that the API server would have made of an image for a job.

    Args:
        image: The file that the client has sent.

    Raises:
        InputInvalid: It is no image that the service accepts, or not of the declared size.
    """
    try:
        with decoders.open(image) as opened:
            if upload.size not in (None, opened.size):
                message = "The image has {} x {} pixels, and the upload was declared to have {} x {}"
                raise ImageError(f"{message.format(*opened.size, *upload.size)}; create another upload.")
            return encode_png(opened.fit(spec.width, spec.height, spec.resize))
    except (ImageError, UnsupportedMedia) as error:
        raise InputInvalid(error.message, error.code) from None
    except Unavailable as error:
        raise JobError(error.message) from None
