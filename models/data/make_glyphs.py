"""Render the glyph data set that the five vision networks are trained, calibrated and tested on.

Every picture is one character of `ALPHABET` in one installed font: warped, coloured, put on a textured background
between pieces of neighbouring characters, blurred and made noisy. The fonts are read from the system with
`fc-list` and split by *design group* (see `group_of`), so that no font of the test set, nor a close relative of it,
is ever seen in training or calibration.

The networks draw their training pictures from `GlyphRenderer.batch` as they go; only the test and calibration
arrays are written to disk (`glyphs_test.npz`, `glyphs_calib.npz`; keys `image` uint8 [N, 3, 32, 32] and `labels`
int64 [N], an index into `ALPHABET`).

The set depends on which fonts are installed. On Debian 12:

    apt-get install --no-install-recommends fontconfig fonts-dejavu-core fonts-dejavu-extra fonts-liberation \\
        fonts-liberation2 fonts-freefont-ttf fonts-noto-core fonts-noto-mono fonts-roboto-unhinted fonts-roboto-slab \\
        fonts-lato fonts-open-sans fonts-cantarell fonts-inconsolata fonts-crosextra-carlito fonts-crosextra-caladea \\
        fonts-comfortaa fonts-cabin fonts-play fonts-quicksand fonts-lobster fonts-lobstertwo fonts-junction \\
        fonts-linuxlibertine fonts-gfs-artemisia fonts-gfs-didot fonts-gfs-neohellenic fonts-gfs-bodoni-classic \\
        fonts-adf-accanthis fonts-adf-baskervald fonts-adf-berenis fonts-adf-gillius fonts-adf-ikarius \\
        fonts-adf-irianis fonts-adf-libris fonts-adf-mekanus fonts-adf-oldania fonts-adf-romande fonts-adf-solothurn \\
        fonts-adf-switzera fonts-adf-tribun fonts-adf-universalis fonts-adf-verana fonts-aenigma fonts-agave \\
        fonts-allerta fonts-anonymous-pro fonts-apropal fonts-arapey fonts-arkpandora fonts-averia-gwf \\
        fonts-averia-sans-gwf fonts-averia-serif-gwf fonts-b612 fonts-bajaderka fonts-bebas-neue fonts-beteckna \\
        fonts-breip fonts-bwht fonts-cabinsketch fonts-cardo fonts-century-catalogue fonts-cherrybomb \\
        fonts-clear-sans fonts-cmu fonts-comic-neue fonts-compagnon fonts-courier-prime fonts-dancingscript \\
        fonts-dkg-handwriting fonts-dosis fonts-dustin fonts-ebgaramond fonts-ebgaramond-extra fonts-ecolier-court \\
        fonts-elstob fonts-engadget fonts-essays1743 fonts-eurofurence fonts-f500 fonts-fantasque-sans fonts-fanwood \\
        fonts-femkeklaver fonts-ferrite-core fonts-firacode fonts-georgewilliams fonts-gnutypewriter fonts-go \\
        fonts-goudybookletter fonts-hack fonts-hermit fonts-humor-sans fonts-inter fonts-isabella \\
        fonts-jetbrains-mono fonts-junicode fonts-jura fonts-karla fonts-karmilla fonts-kaushanscript fonts-kristi \\
        fonts-klaudia-berenika fonts-league-mono fonts-league-spartan fonts-leckerli-one fonts-lemonada \\
        fonts-levien-museum fonts-levien-typoscript fonts-lindenhill fonts-lmodern fonts-manrope fonts-millimetre \\
        fonts-monofur fonts-monoid fonts-mononoki fonts-mplus fonts-national-park fonts-croscore fonts-ocr-a \\
        fonts-ocr-b fonts-okolaks fonts-oldstandard fonts-opendin fonts-opendyslexic fonts-osifont fonts-paratype \\
        fonts-prociono fonts-quattrocento fonts-radisnoir fonts-roadgeek fonts-routed-gothic fonts-rufscript \\
        fonts-sil-andika fonts-sil-charis fonts-sil-doulos fonts-sil-gentium fonts-sil-gentium-basic fonts-sjfonts \\
        fonts-solide-mirage fonts-sora fonts-staypuft fonts-stix fonts-summersby fonts-texgyre fonts-thai-tlwg-ttf \\
        fonts-tiresias fonts-tomsontalks fonts-train fonts-tuffy fonts-oxygen fonts-ubuntu-title fonts-urw-base35 \\
        fonts-vollkorn fonts-yanone-kaffeesatz fonts-yrsa-rasa fonts-havana fonts-3270 fonts-pc fonts-nanum \\
        fonts-unfonts-core fonts-teluguvijayam fonts-sil-mondulkiri

    python models/data/make_glyphs.py            # writes the two .npz files beside this script
    python models/data/make_glyphs.py --sheet s  # also writes s-test.png and s-fonts.png, to look at
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from packing import save_npz
from PIL import Image, ImageDraw, ImageFont

#: The classes. Characters that many fonts draw alike (0/O/o, 1/I/l, c/C, s/S, 9/g/q, ...) appear at most once.
ALPHABET = "23456789ABCDEFGHJKLMNOPQRSTUVWXYZabdefghimnrt&?@#%$"
SIZE = 32
MASK = 48
GLYPH = 40
TEST_PERCENT = 25
FACES_PER_GROUP = 10

#: Lower-case letters whose shape differs from their capital; a font that draws both alike has no lower case.
CASED = "abdefghnrt"

#: Design groups made of families that do not share a first word but share their outlines, or nearly so.
RELATIVES = {
    "liberation": ("arimo", "tinos", "cousine", "aerial", "tymes"),
    "dejavu": ("veranda", "bitstream", "hack", "waree"),
    "urw": ("free", "nimbus", "tex", "c059", "p052", "z003", "d050000l", "loma", "garuda", "kinnari", "umpush"),
    "paratype": ("pt",),
    "thai": ("tlwg", "laksaman", "norasi", "sawasdee", "purisa"),
    "noto": ("open", "droid"),
    "computer-modern": ("latin", "lm", "cmu"),
    "lato": ("carlito",),
    "charis": ("doulos", "gentium", "andika"),
    "yrsa": ("rasa",),
    "fira": ("monoid", "monoisome"),
    "junicode": ("elstob",),
    "mplus": ("m",),
    "klaudia": ("berenika",),
    "karla": ("karmilla",),
    "unfonts": ("unbatang", "undinaru", "undotum", "ungraphic", "ungungseo", "unpilgi"),
}

#: Words that families of one design are known to begin with ("OpenDyslexicAlta" belongs to "opendyslexic").
STEMS = ("opendyslexic", "stix", "beteckna", "ocr", "nanum", "karmilla", "karla", "gentium", "elstob", "free", "lm")


@dataclass(frozen=True)
class Face:
    """One font face and the design group it belongs to."""

    path: str
    index: int
    group: str
    name: str


def digest(text: str) -> int:
    """A hash that is the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def group_of(family: str) -> str:
    """The design group of a font family: its first word, lower-cased, with known relatives joined."""
    word = family.replace("-", " ").split()[0].lower()
    word = next((stem for stem in STEMS if word.startswith(stem)), word)
    return next((group for group, words in RELATIVES.items() if word in words), word)


def installed_faces() -> list[Face]:
    """All installed outline faces that cover `ALPHABET`, at most `FACES_PER_GROUP` of each design group."""
    charset = " ".join(f"{ord(c):x}" for c in ALPHABET)
    pattern = f":charset={charset}:scalable=true:variable=false"
    query = ["fc-list", pattern, "--format", "%{file}\t%{index}\t%{family[0]}\t%{style[0]}\n"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    groups: dict[str, dict[str, Face]] = {}
    for line in sorted(line for line in lines if line.count("\t") == 3):
        path, number, family, style = line.split("\t")
        index = int(number)
        if index >= 1 << 16 or not path.endswith((".ttf", ".otf", ".ttc")):
            continue
        name = f"{family} {style}"
        groups.setdefault(group_of(family), {}).setdefault(name, Face(path, index, group_of(family), name))
    faces = []
    for group in sorted(groups):
        ranked = sorted(groups[group].values(), key=lambda face: (digest(face.name), face.path))
        faces += ranked[:FACES_PER_GROUP]
    return faces


def glyph_masks(face: Face) -> np.ndarray | None:
    """Coverage of each character, uint8 [classes, MASK, MASK], centred and scaled to one size; None if blank."""
    font = ImageFont.truetype(face.path, 64, index=face.index)
    masks = np.zeros((len(ALPHABET), MASK, MASK), np.uint8)
    for row, character in enumerate(ALPHABET):
        canvas = Image.new("L", (256, 256))
        ImageDraw.Draw(canvas).text((80, 80), character, font=font, fill=255)
        box = canvas.getbbox()
        if box is None or min(box[2] - box[0], box[3] - box[1]) < 2:
            return None
        glyph = canvas.crop(box)
        scale = GLYPH / max(glyph.size)
        width, height = (max(1, round(side * scale)) for side in glyph.size)
        glyph = glyph.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (MASK - width) // 2, (MASK - height) // 2
        masks[row, top : top + height, left : left + width] = np.asarray(glyph)
    return masks


def unit_rows(masks: np.ndarray) -> np.ndarray:
    """Blurred, centred masks as unit vectors, so that a dot product is a correlation."""
    flat = F.avg_pool2d(torch.from_numpy(masks).float().flatten(0, -3)[:, None], 5, 3, 2).flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return F.normalize(flat, dim=1).numpy().reshape(*masks.shape[:-2], -1)


def legible(masks: np.ndarray) -> np.ndarray:
    """Which fonts [fonts] show Latin letters of both cases.

    A font is dropped when most of its characters look more like another class's average than like their own
    (symbol fonts, legacy encodings of other scripts), or when its lower case repeats its capitals. Neither test
    looks at the split or at any network.
    """
    rows = unit_rows(masks)
    templates = rows.mean(0)
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    nearest = np.einsum("fcd,kd->fck", rows, templates).argmax(2)
    readable = (nearest == np.arange(len(ALPHABET))).mean(1) >= 0.5
    lower = [ALPHABET.index(c) for c in CASED]
    upper = [ALPHABET.index(c.upper()) for c in CASED]
    alike = ((rows[:, lower] * rows[:, upper]).sum(2) > 0.85).sum(1)
    return readable & (alike <= 3)


def load_split() -> tuple[tuple[list[Face], np.ndarray], tuple[list[Face], np.ndarray]]:
    """The legible fonts as (train faces, masks), (test faces, masks); whole design groups go to one side."""
    faces, masks = [], []
    for face in installed_faces():
        glyphs = glyph_masks(face)
        if glyphs is not None:
            faces.append(face)
            masks.append(glyphs)
    stack = np.stack(masks)
    keep = legible(stack)
    held_out = np.array([digest(face.group) % 100 < TEST_PERCENT for face in faces])

    def select(where: np.ndarray) -> tuple[list[Face], np.ndarray]:
        return [face for face, chosen in zip(faces, where, strict=True) if chosen], stack[where]

    return select(keep & ~held_out), select(keep & held_out)


class GlyphRenderer:
    """Draws batches of pictures from a fixed set of glyph masks; the same seed gives the same pictures."""

    def __init__(self, masks: np.ndarray, seed: int) -> None:
        self.masks = torch.from_numpy(masks)
        self.rng = torch.Generator().manual_seed(seed)

    def _uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self.rng) * (high - low) + low

    def _texture(self, n: int, channels: int, cells: int) -> torch.Tensor:
        """Smooth random fields in [-1, 1], [n, channels, SIZE, SIZE]."""
        coarse = self._uniform(-1, 1, n, channels, cells, cells)
        return F.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear", align_corners=True)

    def _warp(self, masks: torch.Tensor, n: int) -> torch.Tensor:
        """Glyph and its two neighbours [n, 3, MASK, MASK] -> one coverage map [n, 1, SIZE, SIZE]."""
        angle = self._uniform(-0.3, 0.3, n)
        shear = self._uniform(-0.3, 0.3, n)
        zoom = self._uniform(0.85, 1.35, n)
        aspect = self._uniform(-0.2, 0.2, n).exp()
        cos, sin = angle.cos() * zoom, angle.sin() * zoom
        theta = torch.zeros(n, 2, 3)
        theta[:, 0, 0], theta[:, 0, 1] = cos * aspect, (shear * cos - sin) * aspect
        theta[:, 1, 0], theta[:, 1, 1] = sin / aspect, (shear * sin + cos) / aspect
        theta[:, :, 2] = self._uniform(-0.2, 0.2, n, 2)
        grid = F.affine_grid(theta, [n, 1, SIZE, SIZE], align_corners=False)
        wobble = self._texture(n, 2, 5) * self._uniform(0, 0.14, n, 1, 1, 1)
        grid = grid + wobble.permute(0, 2, 3, 1)
        layers = []
        for layer, shift in enumerate((0.0, -1.75, 1.75)):
            moved = grid + torch.tensor([shift, 0.0])
            layers.append(F.grid_sample(masks[:, layer : layer + 1], moved, align_corners=False))
        neighbours = torch.maximum(layers[1], layers[2]) * (self._uniform(0, 1, n, 1, 1, 1) < 0.6)
        return torch.maximum(layers[0], neighbours)

    def batch(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """n pictures, uint8 [n, 3, SIZE, SIZE], and their labels, int64 [n]."""
        fonts, classes = self.masks.shape[:2]
        font = torch.randint(fonts, (n, 1), generator=self.rng).expand(n, 3)
        character = torch.randint(classes, (n, 3), generator=self.rng)
        cover = self._warp(self.masks[font, character].float() / 255, n)

        paper = self._uniform(0, 1, n, 3, 1, 1)
        ink = self._uniform(0, 1, n, 3, 1, 1)
        weights = torch.tensor([0.3, 0.59, 0.11]).view(1, 3, 1, 1)
        gap = ((ink - paper) * weights).sum(1, keepdim=True)
        wanted = self._uniform(0.25, 0.8, n, 1, 1, 1) * torch.where(gap < 0, -1.0, 1.0)
        ink = ink + (wanted - gap)
        shade = self._texture(n, 1, 2) * self._uniform(0, 0.2, n, 1, 1, 1)
        grain = self._texture(n, 3, 9) * self._uniform(0, 0.16, n, 1, 1, 1)
        picture = paper + grain + (ink - paper) * cover + shade
        offset = self._uniform(0, 1, n, 1, 1, 1)
        low, high = picture.amin((1, 2, 3), keepdim=True), picture.amax((1, 2, 3), keepdim=True)
        picture = (picture - low) / (high - low).clamp(min=1.0) + (1 - (high - low)).clamp(min=0) * offset

        kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        kernel = (kernel[:, None] * kernel).expand(3, 1, 5, 5)
        blurred = F.conv2d(F.pad(picture, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
        picture = torch.lerp(picture, blurred, self._uniform(0, 1, n, 1, 1, 1))
        noise = torch.randn(picture.shape, generator=self.rng) * self._uniform(0, 0.09, n, 1, 1, 1)
        levels = ((picture + noise).clamp(0, 1) * 31).round()  # 5 bits a channel, as RGB555: keeps the files small
        return (levels * (255 / 31)).round().to(torch.uint8), character[:, 0]


def save(path: Path, masks: np.ndarray, seed: int, n: int) -> np.ndarray:
    """Render n pictures, write them to `path` and return them."""
    image, labels = GlyphRenderer(masks, seed).batch(n)
    save_npz(path, image=image.numpy(), labels=labels.numpy())
    print(f"{path}: {n} pictures, {path.stat().st_size / 1e6:.1f} MB")
    return image.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the glyph test and calibration arrays.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n-test", type=int, default=5120)
    parser.add_argument("--n-calib", type=int, default=512)
    parser.add_argument("--sheet", help="prefix of two contact sheets to write")
    args = parser.parse_args()

    (train_faces, train_masks), (test_faces, test_masks) = load_split()
    for side, faces in (("train", train_faces), ("test", test_faces)):
        print(f"{side}: {len(faces)} faces in {len({face.group for face in faces})} design groups")
    save(args.out / "glyphs_calib.npz", train_masks, args.seed + 1, args.n_calib)
    test = save(args.out / "glyphs_test.npz", test_masks, args.seed + 2, args.n_test)
    if args.sheet:
        tiles = test[:800].reshape(20, 40, 3, SIZE, SIZE).transpose(0, 3, 1, 4, 2).reshape(20 * SIZE, 40 * SIZE, 3)
        Image.fromarray(tiles).save(f"{args.sheet}-test.png")
        rows = np.concatenate([test_masks, train_masks])[:, :, ::2, ::2]
        sheet = rows.transpose(0, 2, 1, 3).reshape(-1, len(ALPHABET) * MASK // 2)
        Image.fromarray(sheet).save(f"{args.sheet}-fonts.png")


if __name__ == "__main__":
    main()
