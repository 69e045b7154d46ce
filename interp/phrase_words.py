"""The words of the French-English grammar (`interp.phrases`), with what agreement needs to know of each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Noun:
    french: str
    feminine: bool
    english: str
    plural: str
    """In English; in French it follows from the noun."""


@dataclass(frozen=True)
class Adjective:
    masculine: str
    feminine: str
    english: str
    before: bool = False
    """Whether it stands before its noun in French."""

    def agreeing(self, feminine: bool, plural: bool) -> str:
        form = self.feminine if feminine else self.masculine
        return pluralised(form) if plural else form


@dataclass(frozen=True)
class Verb:
    french: tuple[str, ...]
    """Forms for je, tu, il, nous, vous, ils."""
    english: str
    third: str
    """With he, she and it."""
    food: bool = False
    """Whether only food can be its object."""


def _nouns(table: str) -> tuple[Noun, ...]:
    rows = [line.split() for line in table.strip().splitlines()]
    return tuple(Noun(french, gender == "f", one, many) for french, gender, one, many in rows)


def _adjectives(table: str, before: bool = False) -> tuple[Adjective, ...]:
    rows = [line.split() for line in table.strip().splitlines()]
    return tuple(Adjective(masculine, feminine, english, before) for masculine, feminine, english in rows)


PEOPLE = _nouns("""
homme m man men
femme f woman women
garçon m boy boys
fille f girl girls
frère m brother brothers
sœur f sister sisters
ami m friend friends
amie f friend friends
père m father fathers
mère f mother mothers
voisin m neighbour neighbours
voisine f neighbour neighbours
roi m king kings
reine f queen queens
""")
FOOD = _nouns("""
pomme f apple apples
orange f orange oranges
gâteau m cake cakes
fromage m cheese cheeses
œuf m egg eggs
poire f pear pears
poisson m fish fish
""")
THINGS = FOOD + _nouns("""
livre m book books
maison f house houses
voiture f car cars
chat m cat cats
chien m dog dogs
table f table tables
lettre f letter letters
fleur f flower flowers
clé f key keys
vélo m bike bikes
chaise f chair chairs
porte f door doors
stylo m pen pens
journal m newspaper newspapers
chemise f shirt shirts
chapeau m hat hats
arbre m tree trees
image f picture pictures
robe f dress dresses
couteau m knife knives
boîte f box boxes
bateau m boat boats
""")
PLACES = _nouns("""
école f school schools
gare f station stations
jardin m garden gardens
marché m market markets
hôtel m hotel hotels
ville f town towns
bureau m office offices
cuisine f kitchen kitchens
""")
NAMES = {"Paul": False, "Marie": True, "Pierre": False, "Julie": True}
"""Name -> whether feminine."""
JOBS = _adjectives("""
étudiant étudiante student
professeur professeure teacher
médecin médecin doctor
avocat avocate lawyer
acteur actrice actor
ingénieur ingénieure engineer
boulanger boulangère baker
chanteur chanteuse singer
artiste artiste artist
musicien musicienne musician
infirmier infirmière nurse
journaliste journaliste journalist
écrivain écrivaine writer
pilote pilote pilot
""")
OF_PEOPLE = _adjectives("""
fatigué fatiguée tired
content contente happy
triste triste sad
malade malade sick
riche riche rich
célèbre célèbre famous
gentil gentille kind
intelligent intelligente clever
calme calme calm
fort forte strong
prêt prête ready
""")
OF_THINGS = _adjectives("""
rouge rouge red
noir noire black
blanc blanche white
vert verte green
bleu bleue blue
jaune jaune yellow
cher chère expensive
propre propre clean
lourd lourde heavy
rond ronde round
important importante important
intéressant intéressante interesting
""")
IN_FRONT = _adjectives(
    """
grand grande big
petit petite small
bon bonne good
mauvais mauvaise bad
joli jolie pretty
""",
    before=True,
)
VERBS = tuple(
    Verb(tuple(french.split()), english, third, food)
    for french, english, third, food in (
        ("aime aimes aime aimons aimez aiment", "like", "likes", False),
        ("mange manges mange mangeons mangez mangent", "eat", "eats", True),
        ("cherche cherches cherche cherchons cherchez cherchent", "look for", "looks for", False),
        ("achète achètes achète achetons achetez achètent", "buy", "buys", False),
        ("regarde regardes regarde regardons regardez regardent", "look at", "looks at", False),
        ("trouve trouves trouve trouvons trouvez trouvent", "find", "finds", False),
        ("vois vois voit voyons voyez voient", "see", "sees", False),
        ("ai as a avons avez ont", "have", "has", False),
        ("veux veux veut voulons voulez veulent", "want", "wants", False),
        ("dessine dessines dessine dessinons dessinez dessinent", "draw", "draws", False),
    )
)
GO = Verb(("vais", "vas", "va", "allons", "allez", "vont"), "go", "goes")
BE = {
    False: ["suis", "es", "est", "sommes", "êtes", "sont"],
    True: ["étais", "étais", "était", "étions", "étiez", "étaient"],
}
"""Whether past -> French forms."""
BE_ENGLISH = {False: ["am", "are", "is", "are", "are", "are"], True: ["was", "were", "was", "were", "were", "were"]}
PRONOUNS = ["je", "tu", "il", "nous", "vous", "ils"]
I_YOU = {"je": "I", "tu": "you", "il": "he", "elle": "she", "nous": "we", "vous": "you", "ils": "they", "elles": "they"}
OFTEN = {"souvent": "often", "toujours": "always", "aussi": "also"}
WHEN = {"aujourd'hui": "today", "maintenant": "now", "ici": "here"}
DETERMINERS = {
    "the": ("le", "la", "les"), "a": ("un", "une", "des"), "this": ("ce", "cette", "ces"), "my": ("mon", "ma", "mes"),
    "your": ("ton", "ta", "tes"), "our": ("notre", "notre", "nos"), "their": ("leur", "leur", "leurs"),
}  # fmt: skip
VOWELS = "aeiouéèêœh"
"""Letters before which French words are elided; every h here is mute."""


def pluralised(french: str) -> str:
    """The plural of a French noun or adjective."""
    if french[-1] in "sxz":
        return french
    if french.endswith("al"):
        return french[:-1] + "ux"
    return french + ("x" if french.endswith(("eau", "eu")) and french != "bleu" else "s")
