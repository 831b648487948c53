"""What a picture's file says of how the picture was made."""

from PIL import ExifTags, Image, PngImagePlugin

EDITED = "compositeWithTrainedAlgorithmicMedia"
GENERATED = "trainedAlgorithmicMedia"
"""IPTC's digital source types (cv.iptc.org/newscodes/digitalsourcetype) of a picture that an AI edited, or made."""

_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
   xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:CreatorTool="tt_flux_kontext"
   Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{source}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""


def with_parameters(suffix: str, parameters: str, source: str = EDITED) -> dict:
    """Arguments of PIL's `save` that put the parameters, and that an AI was at work, into a file of the suffix's kind.

    They stand where other programs look for them. Parameters: in a PNG's text `parameters`, in the EXIF field
    UserComment of JPEG and WebP. The AI's part: in IPTC's field DigitalSourceType of the XMP, where `source` goes.
    Other kinds of file have no place for them.
    """
    kind = Image.registered_extensions().get(suffix.lower())
    xmp = _XMP.format(source=source)
    if kind == "PNG":
        text = PngImagePlugin.PngInfo()
        text.add_itxt("parameters", parameters)
        text.add_itxt("XML:com.adobe.xmp", xmp)
        return {"pnginfo": text}
    if kind in ("JPEG", "WEBP"):
        exif = Image.Exif()
        comment = b"UNICODE\0" + parameters.encode("utf-16-be")
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
        return {"exif": exif, "xmp": xmp.encode()}
    return {}
