"""The texts of the recorded vectors: 1 to about 700 tokens in many scripts, and a few long ones.

Written for this project; nothing here is from a data set.
"""

_HARBOUR = (
    "The harbour master wrote the tide table by hand, and nobody who sailed from the old quay doubted a single figure."
)
_GERMAN = "Die Straßenbahn fährt über die große Brücke, während Müllers Hündin Äpfel süßer findet als Öl."
_JAPANESE = "海辺に沈む美しい夕日を見ながら、私たちは静かに温かいお茶を飲んだ。"
_CHINESE = "海滩上美丽的日落让人忘记了时间，孩子们还在沙滩上奔跑。"
_ARABIC = "غروب جميل للشمس فوق الشاطئ، والأطفال يلعبون على الرمال حتى المساء."
_CODE = '''def read_rows(path: str, *, limit: int = 10) -> list[dict[str, float]]:
    """Read at most `limit` rows; a row that is not JSON is skipped."""
    rows = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number >= limit:
                break
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
    return rows
'''

TEXTS: tuple[str, ...] = (
    "a",
    "beach",
    "A beautiful sunset over the beach",
    "Un beau coucher de soleil sur la plage",
    "浜辺に沈む美しい夕日",
    "海滩上美丽的日落",
    _GERMAN,
    _JAPANESE,
    _CHINESE,
    _ARABIC,
    "Where can I find the opening hours of the municipal library, and is it open on Sundays?",
    "family 👨‍👩‍👧‍👦, flag 🏳️‍🌈, skin 👍🏽, keycap 1️⃣, country 🇯🇵",
    "Cafe\u0301 au lait, re\u0301sume\u0301, A\u030angstro\u0308m, \u1112\u1161\u11ab\u1100\u1173\u11af: decomposed",
    "Café au lait, résumé, Ångström, 한글: the same, composed",
    "<|im_start|>user\nIs this a special token?<|im_end|>\n<|endoftext|><|vision_start|><|image_pad|><|vision_end|>",
    "broken <|im_start |> and <|im_end and |endoftext|> are plain text",
    "  leading blanks\t\ttabs\n\n\nthree new lines   \r\n  and a trailing run of blanks      ",
    " \n ",
    "NUL\x00in the middle, zero\u200bwidth, no\u00a0break, \ufeffmark, \u202eright to left\u202c, soft\u00adhyphen",
    "I'll say it's 3.14159, 1,000,000 and 2024-02-30; they've DON'T'd 42x42=1764!!! ???",
    _CODE,
    " ".join([_HARBOUR, _GERMAN, _JAPANESE, _CHINESE, _ARABIC]),
    "\n\n".join(f"{number}. {_HARBOUR} {_GERMAN}" for number in range(1, 7)),
    " ".join(f"({number}) {_HARBOUR}" for number in range(1, 21)),
)

LONG_TEXTS: tuple[str, ...] = (
    " ".join(f"Entry {number}: {_HARBOUR}" for number in range(1, 69)),
    "\n".join(f"{number} {_GERMAN} {_JAPANESE}" for number in range(1, 29)),
    "\n\n".join(_CODE.replace("read_rows", f"read_rows_{number}") for number in range(1, 16)),
)

SHORT_TEXTS: tuple[str, ...] = TEXTS[:3] + TEXTS[4:6] + TEXTS[10:11]
"""The texts whose every token's vector is recorded."""
