"""Word lists for rule-based negatives, small and our own: opposites, colours, relations, and what ends a phrase."""

from __future__ import annotations


def listed(words: str) -> tuple[str, ...]:
    """Return the words of a list."""
    return tuple(words.split())


def both_ways(pairs: str) -> dict[str, str]:
    """Return a dictionary of pairs of words, or of phrases with a slash between, from either side.

    The first pair of a word counts.
    """
    pairings: dict[str, str] = {}
    for entry in " ".join(pairs.split()).split(","):
        left, right = entry.strip().split("/") if "/" in entry else entry.split()
        pairings.setdefault(left, right)
        pairings.setdefault(right, left)
    return pairings


OPPOSITES = both_ways("""
    big small, large tiny, tall short, long brief, wide narrow, thick thin, high low, deep shallow, heavy light,
    old new, young elderly, ancient modern, open closed, full empty, wet dry, hot cold, warm cool, clean dirty,
    bright dim, light dark, shiny dull, smooth rough, soft hard, round square, straight curved, sharp blurry,
    clear cloudy, sunny overcast, smiling frowning, happy sad, awake asleep, standing sitting, walking running,
    single double, many few, crowded deserted, busy quiet, indoor outdoor, indoors outdoors, male female, man woman,
    men women, boy girl, boys girls, day night, morning evening, summer winter, horizontal vertical, wooden metallic,
    plain patterned, natural artificial, adult juvenile, inner outer, upper lower, opaque transparent, flat bumpy,
    visible hidden, intact broken, fresh rotten, lit unlit, tidy messy, steep gentle, rural urban, calm stormy
""")
COLOURS = listed("red orange yellow green blue purple pink brown black white grey beige turquoise maroon golden silver")
ATTRIBUTES = COLOURS + listed("""
    wooden metal plastic stone brick glass leather concrete paper cotton marble striped spotted checkered floral plain
    rusty shiny dusty muddy furry fluffy feathered wrinkled small large tiny big tall short long wide narrow thick thin
    round square rectangular oval old new bright dark pale empty full open closed dense bare leafy snowy grassy rocky
    sandy cloudy clear blurry
""")
RELATIONS = both_ways("""
    left right, above below, over under, in front of/behind, on top of/underneath, inside/outside, near/far from,
    top bottom, upper lower, foreground background, next to/far away from, towards/away from, up down,
    upstairs downstairs, on/under, north south, east west, leftmost rightmost, topmost bottommost, leftward rightward,
    upwards downwards, ahead of/behind, beneath/on top of
""")
DETERMINERS = frozenset(
    listed("""
    a an the this that these those his her its their our my your some several two three four five six many
    another one each every both
""")
)
FRAME = frozenset(
    listed("""
    left right top bottom center centre middle side background foreground image photo photograph picture view frame
    shot corner edge viewer camera distance front back scene
""")
)  # nouns of the picture rather than of what it shows: exchanged with a thing they give nonsense
PHRASE_ENDS = frozenset(
    listed("""
    a an the this that these those his her its their our some several is are was were be been being has have had
    and or but nor so yet as if while when where which who whose than then there here it he she they we you i of in on
    at by to from with without into onto over under above below behind before after between among around across along
    through near next beside beneath underneath inside
    outside against toward towards up down off out for about like can could will would may
    might must do does did not no also only just very all both each every hanging standing sitting lying walking running
    holding wearing covering showing facing leaning growing parked placed located visible seen made covered surrounded
    filled attached painted stands sits lies hangs shows covers holds wears grows looks appears runs leads goes reaches
    faces fills leans rests rises contains includes walks stand sit lie hang show cover
""")
)
