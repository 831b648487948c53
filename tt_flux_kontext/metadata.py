"""What a picture's file says of how the picture was made."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from tt_flux_kontext.parameters import Parameters

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Of files that have a place for it."""
EDITED = "compositeWithTrainedAlgorithmicMedia"
GENERATED = "trainedAlgorithmicMedia"
SOURCES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
"""IPTC's digital source types of a picture that an AI edited, or made; and what their names go on from."""

_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
   xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="tt_flux_kontext"
   Iptc4xmpExt:DigitalSourceType="{source}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
_JPEG_EXIF = 64_500  # bytes: it has 65,533, some of them for what isn't known before the edit
_KEY = "tt_flux_kontext"  # of a PNG's text, and before the JSON in EXIF's MakerNote


class Claim(Protocol):
    """What is to be signed of a picture: `credentials.Claim`."""

    def sign(self, file: bytes, kind: str) -> bytes: ...


def with_parameters(suffix: str, parameters: str, source: str = EDITED, exact: str | None = None) -> dict:
    """Arguments of PIL's `save` that put the parameters, and that an AI was at work, into a file of the suffix's kind.

    They stand where other programs look for them. Parameters: in a PNG's text `parameters`, in the EXIF field
    UserComment of JPEG and WebP. The AI's part: in IPTC's field DigitalSourceType of the XMP, where `source` goes.
    Other kinds of file have no place for them.

    `exact`: what `read_parameters` is to find, in a text of its own of a PNG, or in EXIF's MakerNote.
    """
    kind = Image.registered_extensions().get(suffix.lower())
    xmp = _XMP.format(source=SOURCES + source)
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("parameters", parameters)
        text.add_itxt("XML:com.adobe.xmp", xmp)
        if exact:
            text.add_itxt(_KEY, exact)
        return {"pnginfo": text}
    if kind in ("JPEG", "WEBP"):
        exif = Image.Exif()
        fields = exif.get_ifd(ExifTags.IFD.Exif)
        fields[ExifTags.Base.UserComment] = b"UNICODE\0" + parameters.encode("utf-16-be")
        if exact:
            fields[ExifTags.Base.MakerNote] = f"{_KEY}\0{exact}".encode()
        return {"exif": exif, "xmp": xmp.encode()}
    return {}


def software() -> str:
    """This program and its version."""
    try:
        return f"tt_flux_kontext {version('tt_flux_kontext')}"
    except PackageNotFoundError:  # not installed, but found by the path
        return "tt_flux_kontext"


def save(picture: Image.Image, path: Path, **options) -> None:
    """Whole or not at all: written beside its place, then renamed. `options` are those of PIL's `save`."""
    with _whole(path) as temporary:
        picture.save(temporary, **options)


def as_file(picture: Image.Image, kind: str, claim: Claim | None, **options) -> bytes:
    """A file of one of PIL's kinds, signed where there is a claim. `options` are those of PIL's `save`."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return claim.sign(file.getvalue(), Image.MIME[kind]) if claim else file.getvalue()


def save_result(
    picture: Image.Image, path: Path, parameters: Parameters, *, beside: bool = False, claim: Claim | None = None
) -> None:
    """Saves a picture with its parameters in it, under a name that ends in one of SUFFIXES.

    Args:
        beside: also as JSON in a file of that name, which is there when the picture is.
        claim: to sign.
    """
    if beside:
        with _whole(path.with_suffix(".json")) as temporary:
            temporary.write_text(parameters.as_json() + "\n", encoding="utf-8")
    source = EDITED if parameters.image else GENERATED
    texts = with_parameters(path.suffix, parameters.text(picture.size), source, parameters.as_json())
    kind = Image.registered_extensions()[path.suffix.lower()]
    file = as_file(picture, kind, claim, quality=95, **texts)  # of JPEG and WebP
    with _whole(path) as temporary:
        temporary.write_bytes(file)


def check_room(path: Path, parameters: Parameters) -> None:
    """Raises `ValueError` for parameters that are too long for the file, which only a JPEG's can be."""
    place = with_parameters(path.suffix, parameters.text((0, 0)), exact=parameters.as_json())
    if (
        path.suffix.lower() in (".jpg", ".jpeg") and len(place["exif"].tobytes()) > _JPEG_EXIF - 1000
    ):  # of the size, ...
        raise ValueError(f"{path}: a JPEG has no room for so long a prompt: --out with a name that ends in .png")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to write in place of `path`: it gets that name once it is written, and is removed when that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=path.suffix, delete=False) as file:
        temporary = Path(file.name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_parameters(path: str | Path) -> Parameters:
    """Of a picture that this program made, or of the JSON beside it. Raises `ValueError` where there are none."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8") if path.suffix == ".json" else _embedded(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file.") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path}: it can't be read ({error}).") from error
    if text is None:
        raise ValueError(f"{path}: it has no parameters of tt_flux_kontext in it.")
    try:
        return Parameters.from_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: its parameters can't be read: {error}.") from error


def _embedded(path: Path) -> str | None:
    with Image.open(path) as picture:
        if picture.format == "PNG":
            return picture.text.get(_KEY)
        note = picture.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.MakerNote, b"")
        key, _, text = note.decode(errors="replace").partition("\0") if isinstance(note, bytes) else ("", "", "")
        return text if key == _KEY else None
