"""Words of the simulated world: a two-level taxonomy, brand names, readable titles.

Each subcategory has nouns and words of its own; the subcategories of one category share further
words. Noise words say nothing. So a text encoder recovers the taxonomy well, not perfectly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prerank import seeds
from prerank.artifacts import IntArray, TextArray

# category: words shared inside it | subcategory = nouns; words of its own | ...
_TAXONOMY = """
outdoor: trail, weatherproof, lightweight, alpine, rugged
 | camping = tent, sleeping bag, camp stove, lantern; two-person, ultralight, canvas, foldable
 | hiking = hiking boots, trekking poles, daypack, gaiters; waterproof, cushioned, ankle, summit
 | climbing = harness, climbing rope, chalk bag, carabiner; dynamic, belay, grip, bouldering
 | fishing = spinning rod, tackle box, fishing reel, lure set; telescopic, braided, carp, river
sport: training, performance, breathable, athletic, sweat-proof
 | running = running shoes, running socks, race singlet, sweatband; merino, marathon, tempo, fast
 | cycling = cycling jersey, bike helmet, saddle, bike pump; aerodynamic, gravel, clipless, commuter
 | swimming = swim goggles, swimsuit, kickboard, swim cap; anti-fog, chlorine-proof, lap, silicone
 | yoga = yoga mat, yoga block, meditation cushion, yoga strap; cork, non-slip, mindful, stretch
kitchen: stainless, dishwasher-safe, everyday, chef, kitchen
 | baking = cake tin, rolling pin, stand mixer, piping set; springform, dough, pastry, non-stick
 | coffee = espresso maker, coffee grinder, pour-over set, milk frother; burr, barista, roast, drip
 | knives = chef knife, bread knife, knife block, sharpener; damascus, forged, santoku, serrated
 | storage = jar set, lunch box, spice rack, vacuum canister; airtight, stackable, glass, leakproof
home: cosy, modern, living, decorative, scandinavian
 | bedding = duvet cover, pillow, bed sheet, blanket; cotton, down, percale, queen-size
 | lighting = floor lamp, desk lamp, pendant light, string lights; dimmable, brass, warm, shade
 | gardening = pruning shears, planter, seed kit, garden hose; terracotta, compost, bloom, raised
 | furniture = bookshelf, side table, armchair, shoe bench; oak, upholstered, walnut, flat-pack
tech: wireless, smart, rechargeable, digital, compact
 | audio = headphones, bluetooth speaker, earbuds, turntable; noise-cancelling, bass, hi-fi, vinyl
 | photo = tripod, camera bag, prime lens, photo printer; aperture, telephoto, mirrorless, shutter
 | gaming = gaming mouse, controller, mechanical keyboard, headset; rgb, esports, low-latency, macro
 | wearables = fitness watch, sleep tracker, smart ring, watch strap; heart-rate, gps, step, amoled
beauty: gentle, dermatologist-tested, radiant, vegan, fragrance-free
 | skincare = face serum, moisturiser, sunscreen, cleansing gel; hyaluronic, vitamin, dewy, pore
 | haircare = shampoo, hair dryer, hair mask, styling brush; keratin, curl, argan, volumising
 | makeup = lipstick, mascara, foundation, eyeshadow palette; matte, long-wear, pigmented, shimmer
 | perfume = eau de parfum, body mist, scented candle, solid perfume; bergamot, cedar, floral, musk
fashion: classic, tailored, seasonal, casual, vintage
 | denim = jeans, denim jacket, dungarees, denim skirt; selvedge, slim-fit, stonewashed, indigo
 | knitwear = cardigan, jumper, beanie, scarf; cashmere, cable-knit, ribbed, wool
 | bags = tote bag, backpack, crossbody bag, weekender; leather, zipped, quilted, strap
 | jewellery = necklace, earrings, bracelet, signet ring; sterling, pearl, gold-plated, pendant
toys: playful, kids, colourful, educational, child-safe
 | puzzles = jigsaw puzzle, brain teaser, wooden puzzle, puzzle cube; cardboard, logic, scenic, maze
 | building = brick set, marble run, model kit, magnetic tiles; construction, castle, rocket, gears
 | dolls = doll house, rag doll, plush bear, puppet; soft, dress-up, huggable, miniature
 | boardgames = strategy game, card game, party game, dice set; cooperative, quest, trivia, tabletop
books: paperback, illustrated, bestselling, edition, reader
 | crime = detective novel, thriller, cold case, murder mystery; noir, suspense, inspector, alibi
 | fantasy = fantasy saga, dragon tale, magic chronicle, epic novel; sorcerer, realm, elven, oracle
 | cooking = cookbook, recipe set, baking guide, food atlas; vegetarian, ferment, supper, broth
 | history = biography, empire history, war diary, museum guide; medieval, roman, archive, dynasty
pets: hypoallergenic, pet-safe, washable, chew-proof, vet-approved
 | dogs = dog leash, dog bed, chew toy, dog coat; puppy, fetch, reflective, kennel
 | cats = scratching post, cat tree, litter box, feather wand; kitten, catnip, sisal, whisker
 | aquarium = fish tank, aquarium filter, fish food, aquarium plant; tropical, coral, algae, bubbler
 | birds = bird cage, bird feeder, perch, seed mix; parrot, canary, nesting, sunflower
"""
_NOISE = """
premium new deluxe original essential value pro plus bestseller gift limited official quality set
pack bundle series edition large small medium black white blue red green grey navy sand olive rose
"""
_COLOURS = "black white blue red green grey navy sand olive rose amber ivory charcoal teal"
_STARTS = "Nor Vel Kar Bri Tam Sol Hal Fen Ost Lum Mar Rav Cor Quil Zan Del Eri Pav Wim Jor"
_ENDS = "dwell vik tano mere ska lund ora nix brook vane ello stad ridge wick"
_VAGUE_NOUNS = ["set", "bundle", "gift pack", "accessory"]
N_SUBCATEGORIES_EACH = 4


def _parse() -> tuple[list[str], list[list[str]], list[str], list[list[str]], list[list[str]]]:
    """Return category names, their shared words, subcategory names, their nouns, their words."""
    categories, shared, names, nouns, words = [], [], [], [], []
    for line in _TAXONOMY.strip().splitlines():
        head, _, tail = line.partition(":" if ":" in line else "=")
        if ":" in line:
            categories.append(head)
            shared.append(tail.strip().split(", "))
        else:
            noun, _, own = tail.partition(";")
            names.append(head.strip(" |"))
            nouns.append(noun.strip().split(", "))
            words.append(own.strip().split(", "))
    return categories, shared, names, nouns, words


CATEGORIES, _SHARED, SUBCATEGORIES, _NOUNS, _WORDS = _parse()
CATEGORY_OF: IntArray = np.repeat(np.arange(len(CATEGORIES), dtype=np.int32), N_SUBCATEGORIES_EACH)


def brand_names(n_brands: int, seed: int) -> tuple[str, ...]:
    """Return ``n_brands`` distinct pronounceable names, numbered once syllables run out."""
    pairs = np.array([start + end for start in _STARTS.split() for end in _ENDS.split()])
    order = seeds.rng(seed, "world", "brand-names").permutation(len(pairs))
    rounds, place = np.divmod(np.arange(n_brands), len(pairs))
    base = pairs[order][place]
    return tuple(n if not r else f"{n}{r + 1}" for n, r in zip(base.tolist(), rounds, strict=True))


def item_texts(
    subcategory: IntArray, brand: IntArray, brands: tuple[str, ...], noise: float, seed: int
) -> tuple[TextArray, TextArray]:
    """Return the title and the full text of each item, both (I,) object.

    A title reads ``Brand word noun, colour``; the text adds a few words of the subcategory, of
    the category and noise. Every content word is replaced by a noise word with chance ``noise``;
    the noun of the title only with half of it, so that people can still read the reports.
    """
    rng = seeds.rng(seed, "world", "texts")
    category = CATEGORY_OF[subcategory]
    filler = np.array(_NOISE.split())
    noun = _blur(_pick(_NOUNS, subcategory, rng), noise / 2, np.array(_VAGUE_NOUNS), rng)
    own = [_blur(_pick(_WORDS, subcategory, rng), noise, filler, rng) for _ in range(2)]
    shared = [_blur(_pick(_SHARED, category, rng), noise, filler, rng) for _ in range(2)]
    empty = [rng.choice(filler, len(subcategory)) for _ in range(2)]
    colour = rng.choice(np.array(_COLOURS.split()), len(subcategory))
    title = _join(np.array(brands)[brand], own[0], noun)
    title = np.char.add(np.char.add(title, ", "), colour)
    text = _join(title, own[1], *shared, *empty)
    return title.astype(object), text.astype(object)


def _pick(lists: list[list[str]], row: IntArray, rng: np.random.Generator) -> NDArray[np.str_]:
    """Return for each n one entry of ``lists[row[n]]``; all lists have one length or are cut."""
    width = min(len(entries) for entries in lists)
    table = np.array([entries[:width] for entries in lists])
    return table[row, rng.integers(width, size=len(row))]


def _blur(
    words: NDArray[np.str_], chance: float, noise: NDArray[np.str_], rng: np.random.Generator
) -> NDArray[np.str_]:
    other = rng.choice(noise, len(words))
    return np.where(rng.random(len(words)) < chance, other, words)


def _join(*parts: NDArray[np.str_]) -> NDArray[np.str_]:
    out = parts[0]
    for part in parts[1:]:
        out = np.char.add(np.char.add(out, " "), part)
    return out
