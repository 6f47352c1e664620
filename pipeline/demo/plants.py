"""Common plant names and their scientific names, for the demo's pictures: a table and a lookup.

A name that could mean several species (a flower, a pepper, a palm) is left out, or given at the rank that is certain.
Real sources have such gaps too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class PlantName:
    """A common name with its taxon. `scientific` is a species, or a genus where the species is not certain."""

    vernacular: str
    scientific: str
    family: str
    kingdom: str = "Plantae"

    @property
    def genus(self) -> str:
        """First word of the scientific name."""
        return self.scientific.removeprefix("× ").split()[0]


# words as captions and file names have them | vernacular name | scientific name | family
_TABLE = """
adenium, desert rose | desert rose | Adenium obesum | Apocynaceae
almond | almond | Prunus dulcis | Rosaceae
anemone | poppy anemone | Anemone coronaria | Ranunculaceae
anthurium | flamingo flower | Anthurium andraeanum | Araceae
apple | apple | Malus domestica | Rosaceae
apricot | apricot | Prunus armeniaca | Rosaceae
artichoke | globe artichoke | Cynara cardunculus | Asteraceae
asparagus | asparagus | Asparagus officinalis | Asparagaceae
aubergine, eggplant | aubergine | Solanum melongena | Solanaceae
avocado | avocado | Persea americana | Lauraceae
balsam | garden balsam | Impatiens balsamina | Balsaminaceae
banana | banana | Musa × paradisiaca | Musaceae
birch | birch | Betula | Betulaceae
blackberry, blackberries | blackberry | Rubus fruticosus | Rosaceae
blueberry, blueberries | blueberry | Vaccinium corymbosum | Ericaceae
broccoli | broccoli | Brassica oleracea | Brassicaceae
cabbage | cabbage | Brassica oleracea | Brassicaceae
cacao | cacao | Theobroma cacao | Malvaceae
carrot | carrot | Daucus carota | Apiaceae
cauliflower | cauliflower | Brassica oleracea | Brassicaceae
celery | celery | Apium graveolens | Apiaceae
cherimoya | cherimoya | Annona cherimola | Annonaceae
cherry, cherries | sweet cherry | Prunus avium | Rosaceae
chile pepper, green pepper, yellow pepper, pepper | pepper | Capsicum annuum | Solanaceae
coconut | coconut | Cocos nucifera | Arecaceae
corn | maize | Zea mays | Poaceae
cucumber | cucumber | Cucumis sativus | Cucurbitaceae
daffodil | daffodil | Narcissus | Amaryllidaceae
fig | fig | Ficus carica | Moraceae
garlic | garlic | Allium sativum | Amaryllidaceae
gazania | gazania | Gazania | Asteraceae
ginger | ginger | Zingiber officinale | Zingiberaceae
grape | grape vine | Vitis vinifera | Vitaceae
grapefruit | grapefruit | Citrus × aurantium | Rutaceae
hibiscus | Chinese hibiscus | Hibiscus rosa-sinensis | Malvaceae
holly | holly | Ilex aquifolium | Aquifoliaceae
holm oak | holm oak | Quercus ilex | Fagaceae
indian milkweed | Indian milkweed | Calotropis gigantea | Apocynaceae
iris | iris | Iris | Iridaceae
kiwi, kiwifruit | kiwifruit | Actinidia deliciosa | Actinidiaceae
lavender | common lavender | Lavandula angustifolia | Lamiaceae
leek | leek | Allium ampeloprasum | Amaryllidaceae
lemon | lemon | Citrus × limon | Rutaceae
lettuce | lettuce | Lactuca sativa | Asteraceae
lime | lime | Citrus × aurantiifolia | Rutaceae
mandarin, mandarine | mandarin orange | Citrus reticulata | Rutaceae
mango | mango | Mangifera indica | Anacardiaceae
marigold | marigold | Tagetes | Asteraceae
melon | melon | Cucumis melo | Cucurbitaceae
olive | olive | Olea europaea | Oleaceae
onion | onion | Allium cepa | Amaryllidaceae
orange | sweet orange | Citrus × sinensis | Rutaceae
papaya | papaya | Carica papaya | Caricaceae
pattypan | pattypan squash | Cucurbita pepo | Cucurbitaceae
pea, peas | pea | Pisum sativum | Fabaceae
peach | peach | Prunus persica | Rosaceae
pear | pear | Pyrus communis | Rosaceae
pecan | pecan | Carya illinoinensis | Juglandaceae
petunia | petunia | Petunia × atkinsiana | Solanaceae
pigface | pigface | Carpobrotus glaucescens | Aizoaceae
pili nut | pili nut | Canarium ovatum | Burseraceae
pineapple | pineapple | Ananas comosus | Bromeliaceae
plum, prune | plum | Prunus domestica | Rosaceae
pomegranate | pomegranate | Punica granatum | Lythraceae
potato | potato | Solanum tuberosum | Solanaceae
pumpkin | pumpkin | Cucurbita pepo | Cucurbitaceae
radish | radish | Raphanus sativus | Brassicaceae
rambutan | rambutan | Nephelium lappaceum | Sapindaceae
raspberry, raspberries | raspberry | Rubus idaeus | Rosaceae
rose | rose | Rosa | Rosaceae
seville orange | Seville orange | Citrus × aurantium | Rutaceae
spinach | spinach | Spinacia oleracea | Amaranthaceae
strawberry, strawberries | garden strawberry | Fragaria × ananassa | Rosaceae
thyme | thyme | Thymus vulgaris | Lamiaceae
tomato | tomato | Solanum lycopersicum | Solanaceae
turnip | turnip | Brassica rapa | Brassicaceae
walnut | walnut | Juglans regia | Juglandaceae
watermelon | watermelon | Citrullus lanatus | Cucurbitaceae
yam | yam | Dioscorea | Dioscoreaceae
"""
_FUNGI = {"cep": PlantName("cep", "Boletus edulis", "Boletaceae", kingdom="Fungi")}


def _read_table() -> dict[str, PlantName]:
    names = dict(_FUNGI)
    for line in _TABLE.strip().splitlines():
        words, vernacular, scientific, family = (cell.strip() for cell in line.split("|"))
        for word in words.split(","):
            names[word.strip()] = PlantName(vernacular, scientific, family)
    return names


PLANT_NAMES = _read_table()
# longest first, so that "seville orange" wins over "orange"
_PATTERN = re.compile(r"\b(" + "|".join(sorted(map(re.escape, PLANT_NAMES), key=len, reverse=True)) + r")(?:s|es)?\b")


def find_plant_name(*texts: str) -> PlantName | None:
    """Return the plant named in the first of `texts` that names one, or None."""
    for text in texts:
        match = _PATTERN.search(re.sub(r"[_\W]+", " ", text.lower()))
        if match:
            return PLANT_NAMES[match[1]]
    return None
