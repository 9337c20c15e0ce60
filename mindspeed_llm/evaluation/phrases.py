"""Owns the words of the memory dialogues, in two parts that share no name, value or phrasing; it
does not know how they become dialogues.

`TRAIN` and `TEST` have the same shape. What they share on purpose is the form of an answer ("Your
... is ...", "You did not tell me what ..."), because that is what tuning teaches; everything that
has to be remembered, and the way it is asked for, is new in `TEST`.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phrases:
    """Everything one part of the set may say.

    Templates are `str.format` strings; their fields are named after what goes in.

    Attributes:
        values: kind of value -> values of that kind.
        distractors: kind of value -> (user, assistant) turns that mention another such `value`.
        slots: (what the user has, kind of its value).
        state, ask, change: fact with `slot` and `value`; question and update of it.
        likes: (category, kind of its value); like, ask_like: preference and question.
        verbs: (third person, base form, kind of value) of what two people do.
        names: first names;  state_verb, ask_verb: with `name`, `verb` or `base`, and `value`.
        relations, events, things: for whom, for what, and what is bought for it.
        need, ask_reason: statement with `relation`, `event`, `thing`; question with `thing`.
        acknowledge: assistant turns after something was told.
        fillers: ordinary (user, assistant) turns.
    """

    values: dict[str, tuple[str, ...]]
    distractors: dict[str, tuple[tuple[str, str], ...]]
    slots: tuple[tuple[str, str], ...]
    state: tuple[str, ...]
    ask: tuple[str, ...]
    change: tuple[str, ...]
    likes: tuple[tuple[str, str], ...]
    like: tuple[str, ...]
    ask_like: tuple[str, ...]
    verbs: tuple[tuple[str, str, str], ...]
    names: tuple[str, ...]
    state_verb: tuple[str, ...]
    ask_verb: tuple[str, ...]
    relations: tuple[str, ...]
    events: tuple[str, ...]
    things: tuple[str, ...]
    need: tuple[str, ...]
    ask_reason: tuple[str, ...]
    acknowledge: tuple[str, ...]
    fillers: tuple[tuple[str, str], ...]


ANSWER_FACT = "Your {slot} is {value}."
ANSWER_LIKE = "You like {value} best."
ANSWER_VERB = "{name} {verb} {value}."
ANSWER_UNKNOWN = "You did not tell me what {name} {verb}."
ANSWER_REASON = "Yes, you came to buy {thing} for your {relation}'s {event}."

TRAIN = Phrases(
    values={
        "number": ("4182", "7350", "2964", "8017", "5523", "3698", "9241", "6075", "1839", "7746"),
        "name": ("Rosa", "Henrik", "Malik", "Ingrid", "Pavel", "Dora", "Hugo", "Celine", "Amir"),
        "time": ("7:20", "8:45", "11:10", "14:35", "16:50", "18:05", "20:40", "9:15"),
        "colour": ("red", "silver", "dark green", "yellow", "white", "brown", "orange"),
        "place": ("Lisbon", "Oslo", "Naples", "Dublin", "Kyoto", "Prague", "Boston", "Seville"),
        "meal": ("tomato soup", "fried rice", "lentil stew", "onion tart", "fish tacos", "ramen"),
        "drink": ("green tea", "black coffee", "lemonade", "hot chocolate", "apple juice", "cider"),
        "fruit": ("mangoes", "plums", "cherries", "pears", "bananas", "apricots", "figs"),
        "sport": ("tennis", "rowing", "chess", "handball", "fencing", "golf", "hockey"),
        "thing": ("old stamps", "sea shells", "teapots", "comic books", "coins", "postcards"),
    },
    distractors={
        "number": (
            ("The bus that passed had the number {value}.", "Bus numbers can be quite long."),
            ("I paid with the note {value} on the bill.", "Thanks for telling me about it."),
        ),
        "name": (
            ("{value} called me this morning.", "I hope it was a nice call."),
            ("I met {value} on the stairs.", "It is good to meet people by chance."),
        ),
        "time": (("The shop opens at {value}.", "Then there is no hurry."),),
        "colour": (("The sky looked {value} today.", "That must have been pretty."),),
        "place": (("My boss has been to {value}.", "I hope it was a good trip."),),
        "meal": (("The people next door cooked {value}.", "That must have smelled good."),),
        "drink": (("The cafe ran out of {value}.", "Maybe they will have more tomorrow."),),
        "fruit": (("The market had a lot of {value}.", "Markets are lovely in this season."),),
        "sport": (("They showed {value} on television.", "I hope it was fun to watch."),),
        "thing": (("The museum shows {value} this week.", "That could be worth a visit."),),
    },
    slots=(
        ("locker code", "number"),
        ("ticket number", "number"),
        ("membership number", "number"),
        ("dog's name", "name"),
        ("landlord's name", "name"),
        ("dentist's name", "name"),
        ("train time", "time"),
        ("meeting time", "time"),
        ("car's colour", "colour"),
        ("front door's colour", "colour"),
        ("home town", "place"),
        ("next holiday destination", "place"),
        ("lunch order", "meal"),
        ("birthday dish", "meal"),
    ),  # fmt: skip
    state=(
        "My {slot} is {value}.",
        "Just so you know, my {slot} is {value}.",
        "I should mention that my {slot} is {value}.",
        "By the way, my {slot} is {value}.",
    ),
    ask=(
        "What is my {slot}?",
        "Do you remember my {slot}?",
        "Can you tell me my {slot}?",
        "Remind me, what is my {slot}?",
    ),
    change=(
        "It changed: my {slot} is now {value}.",
        "Sorry, I was wrong. My {slot} is {value}.",
        "There is news: my {slot} is {value} from today.",
    ),
    likes=(("drink", "drink"), ("fruit", "fruit"), ("sport", "sport")),
    like=(
        "I like {value} best.",
        "Nothing is better than {value} for me.",
        "My favourite {category} has to be {value}.",
    ),
    ask_like=(
        "Which {category} do I like best?",
        "What is my favourite {category}?",
        "Do you know which {category} I like most?",
    ),
    verbs=(
        ("likes", "like", "fruit"),
        ("collects", "collect", "thing"),
        ("practises", "practise", "sport"),
        ("drinks", "drink", "drink"),
    ),  # fmt: skip
    names=(
        "Anna",
        "Tom",
        "Lena",
        "Oscar",
        "Maria",
        "Felix",
        "Nora",
        "Ivan",
        "Clara",
        "Emil",
        "Judith",
        "Victor",
        "Sara",
        "Peter",
        "Alice",
        "Daniel",
    ),  # fmt: skip
    state_verb=(
        "{name} {verb} {value}.",
        "I know that {name} {verb} {value}.",
        "My friend {name} {verb} {value}.",
    ),
    ask_verb=(
        "What does {name} {base}?",
        "Do you remember what {name} {verb}?",
        "Tell me what {name} {verb}.",
    ),
    relations=("mother", "brother", "cousin", "colleague", "uncle", "daughter", "best friend"),
    events=("wedding", "graduation", "anniversary", "farewell party", "promotion", "exam party"),
    things=("a cake", "a scarf", "a bottle of wine", "a necklace", "chocolates", "a teddy bear"),
    need=(
        "My {relation}'s {event} is on Friday and I need {thing}.",
        "I am looking for {thing} for my {relation}'s {event}.",
        "It is my {relation}'s {event} soon, so I want to buy {thing}.",
    ),
    ask_reason=(
        "Do you remember why I wanted to buy {thing}?",
        "Why did I come to buy {thing}?",
        "Remember why I need {thing}?",
    ),
    acknowledge=(
        "Thank you, I will remember that.",
        "Got it.",
        "Thanks for telling me.",
        "All right, I will keep that in mind.",
    ),
    fillers=(
        ("It is raining again.", "Then take an umbrella with you."),
        ("I have to buy bread later.", "Fresh bread is a good idea."),
        ("How do I keep bread fresh?", "Wrap it in a cloth and keep it in a box."),
        ("The bus was late today.", "I am sorry to hear that."),
        ("I cleaned the kitchen.", "Well done, that is a good feeling."),
        ("What is two plus three?", "Two plus three is five."),
        ("I slept very well.", "I am glad to hear that."),
        ("Which day comes after Monday?", "Tuesday comes after Monday."),
        ("I need new batteries.", "A supermarket should have them."),
        ("How long do I boil an egg?", "About eight minutes for a firm egg."),
        ("My phone is almost empty.", "You could charge it for a while."),
        ("I watched a long film.", "I hope you enjoyed it."),
        ("Is the sun a star?", "Yes, the sun is a star."),
        ("I will go for a walk.", "Enjoy the fresh air."),
        ("The lift is broken.", "The stairs are good exercise."),
        ("What is the capital of France?", "The capital of France is Paris."),
        ("I lost a glove.", "Maybe it is in your other jacket."),
        ("Give me a word for happy.", "Another word for happy is cheerful."),
        ("I am learning to cook.", "That is a useful skill."),
        ("The queue at the bank was long.", "Waiting can be tiring."),
        ("How many legs has a spider?", "A spider has eight legs."),
        ("I have a headache.", "Drink some water and rest a little."),
        ("My plant looks dry.", "It may need some water."),
        ("I must post a letter.", "The post office can help you."),
        ("Do fish sleep?", "Yes, fish rest in their own way."),
        ("The soup was too salty.", "A potato can take up some salt."),
        ("Say something kind.", "You are doing very well today."),
        ("I will call you later.", "I will be here."),
        ("What do bees make?", "Bees make honey."),
        ("My shoes are wet.", "Fill them with paper to dry them."),
    ),
)

TEST = Phrases(
    values={
        "number": ("2871", "6490", "3157", "9408", "1763", "8236", "5012", "4619"),
        "name": ("Bruno", "Selma", "Kasper", "Yusuf", "Greta", "Tobias", "Mina", "Leon"),
        "time": ("6:55", "10:25", "12:40", "15:05", "17:30", "19:20", "21:15"),
        "colour": ("blue", "purple", "black", "pink", "grey", "gold"),
        "place": ("Vienna", "Athens", "Glasgow", "Montreal", "Hamburg", "Geneva", "Cairo"),
        "meal": ("pea soup", "cheese pie", "noodle salad", "roast chicken", "bean chili"),
        "dessert": ("apple pie", "vanilla ice cream", "rice pudding", "carrot cake", "waffles"),
        "flower": ("roses", "tulips", "lilies", "daisies", "orchids", "sunflowers"),
        "animal": ("owls", "horses", "dolphins", "foxes", "penguins", "rabbits"),
        "toy": ("wooden trains", "kites", "dolls", "marbles", "board games", "puzzles"),
    },
    distractors={
        "number": (
            ("There was a house with the number {value}.", "It must be a long street."),
            ("My uncle won with the number {value}.", "Congratulations to your uncle."),
        ),
        "name": (
            ("I wrote a message to {value}.", "I am sure it will be welcome."),
            ("{value} waved at me.", "How friendly."),
        ),
        "time": (("The concert starts at {value}.", "Have a good evening there."),),
        "colour": (("Somebody wore {value} shoes.", "Shoes can say a lot."),),
        "place": (("There was a film about {value}.", "Films can show us the world."),),
        "meal": (("The canteen offered {value}.", "A warm meal is always welcome."),),
        "dessert": (("A child asked for {value}.", "Children love sweet things."),),
        "flower": (("The park is full of {value}.", "It must look wonderful."),),
        "animal": (("The book was about {value}.", "Books about nature are interesting."),),
        "toy": (("A shop near me sells {value}.", "It sounds like a nice shop."),),
    },
    slots=(
        ("bike lock code", "number"),
        ("room number", "number"),
        ("parcel number", "number"),
        ("cat's name", "name"),
        ("teacher's name", "name"),
        ("doctor's name", "name"),
        ("flight time", "time"),
        ("dinner time", "time"),
        ("coat's colour", "colour"),
        ("bedroom's colour", "colour"),
        ("place of birth", "place"),
        ("sister's town", "place"),
        ("dinner order", "meal"),
        ("Sunday meal", "meal"),
    ),  # fmt: skip
    state=(
        "Please keep in mind that my {slot} is {value}.",
        "For later: my {slot} is {value}.",
        "One thing about me, my {slot} is {value}.",
    ),
    ask=(
        "What did I say my {slot} was?",
        "Tell me my {slot} again.",
        "I forgot my {slot}. What is it?",
    ),
    change=(
        "Please correct this, my {slot} is {value}.",
        "A change of plans, my {slot} is {value} instead.",
    ),
    likes=(("dessert", "dessert"), ("flower", "flower"), ("animal", "animal")),
    like=(
        "Of every kind of {category} I love {value} the most.",
        "I enjoy {value} more than any other {category}.",
    ),
    ask_like=(
        "So which {category} is my favourite?",
        "What {category} did I say I love the most?",
    ),
    verbs=(
        ("wants", "want", "toy"),
        ("draws", "draw", "animal"),
        ("grows", "grow", "flower"),
        ("bakes", "bake", "dessert"),
    ),  # fmt: skip
    names=(
        "Julia",
        "Ben",
        "Sofia",
        "Marek",
        "Helen",
        "Simon",
        "Laura",
        "Adam",
        "Irene",
        "Lukas",
    ),  # fmt: skip
    state_verb=(
        "Our neighbour {name} {verb} {value}.",
        "As far as I know, {name} {verb} {value}.",
    ),
    ask_verb=(
        "Now, what was it that {name} {verb}?",
        "I need to know what {name} {verb}.",
    ),
    relations=("sister", "father", "aunt", "niece", "grandmother", "boss"),
    events=("birthday", "retirement", "name day", "housewarming", "recovery"),
    things=("flowers", "a book", "a basket of fruit", "a lamp", "a hat"),
    need=(
        "I need {thing}, because tomorrow is my {relation}'s {event}.",
        "Tomorrow we celebrate my {relation}'s {event} and I still need {thing}.",
    ),
    ask_reason=(
        "Here I am again. What was the reason I came to buy {thing}?",
        "Can you recall why I was looking for {thing}?",
    ),
    acknowledge=(
        "Understood, thank you.",
        "I have made a note of it.",
        "Okay, that is good to know.",
    ),
    fillers=(
        ("The wind is strong outside.", "Hold on to your hat."),
        ("I should wash the car.", "A dry day would be best for it."),
        ("What colour is grass?", "Grass is green."),
        ("My train was crowded.", "I hope you found a seat."),
        ("I finished my homework.", "Great work."),
        ("What is ten minus four?", "Ten minus four is six."),
        ("I am a bit tired.", "A short rest may help."),
        ("Which month comes after May?", "June comes after May."),
        ("I need a new lamp bulb.", "Look at the size of the old one first."),
        ("How do I peel garlic?", "Press it with a knife and pull off the skin."),
        ("The internet is slow today.", "Restarting the router may help."),
        ("I read a good story.", "Stories are a fine way to relax."),
        ("Is ice lighter than water?", "Yes, ice floats on water."),
        ("I will visit the library.", "Have fun with the books."),
        ("My key got stuck.", "A drop of oil often helps."),
        ("I broke a cup.", "Be careful with the pieces."),
        ("How many days has a week?", "A week has seven days."),
        ("I have a cold.", "Get well soon."),
        ("The bakery was closed.", "Maybe another one is open."),
        ("Wish me luck.", "Good luck!"),
    ),
)

# Ordinary talk that needs no memory: (user, assistant) turns. Its loss says whether tuning on
# memory has cost the model its everyday manners. None of it is in the training part.
# What the user says in the guide's example of a conversation that has to be remembered.
GUIDE_TURNS: tuple[str, ...] = (
    "My sister's birthday is tomorrow and I need a birthday bouquet.",
    "She likes pink roses. The color is pink.",
    "Here I go again. Remember why I came to buy flowers yesterday?",
)
