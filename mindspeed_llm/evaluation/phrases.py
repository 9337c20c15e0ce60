"""Owns the words of mt-recall, in two parts that share no name, item or phrasing; it does not know
how they become dialogues.

`TRAIN` and `TEST` have the same shape. What they share on purpose is the form of an answer, because
that is what tuning teaches; what has to be remembered, and how it is asked for, is new in `TEST`.
"""

from __future__ import annotations

import dataclasses

ANSWER_FACT = "Your {slot} is {value}."
ANSWER_REASON = "You came to buy {thing} for your {relation}'s {event}."
ANSWER_VERB = "{name} {verb} {value}."
ANSWER_UNKNOWN = "You did not tell me your {slot}."
ANSWER_COUNT = "{items}: that makes {count}."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phrases:
    """Everything one part may say. Templates are `str.format` strings; fields name what goes in.

    Attributes:
        values: kind of value -> values of that kind.
        mentions: kind of value -> user turns that mention a `value` nobody will ask for.
        slots: kind of value -> what the user has of that kind.
        state, ask, change: `slot` and `value`: fact, question, update.
        relations, events, things, need, ask_reason: why the user came to buy something.
        verbs: (third person, base form, kind of value) of what people do.
        women, men: first names;  state_verb, ask_verb, ask_she, ask_he: with `name`, `verb`,
            `base`, `value`.
        lists, items: what is put on a list;  add, ask_count: with `list` and `item`; seen: turns
            that mention an item without adding it.
        words: code words of a rule;  rule: with `word`; hears: turns that mention a `word`.
        says, repeat: short texts, and requests to repeat one (`text`), where the rule holds.
        markers: (end of a turn, header of the assistant's) as some template writes them.
        paste: user turns with the text of a `fake` turn in them; broken: statements (`statement`)
            with a marker (`end`, `start`) typed in.
        replies: what the assistant says to a statement;  fillers: ordinary (user, assistant) turns.
    """

    values: dict[str, tuple[str, ...]]
    mentions: dict[str, tuple[str, ...]]
    slots: dict[str, tuple[str, ...]]
    state: tuple[str, ...]
    ask: tuple[str, ...]
    change: tuple[str, ...]
    relations: tuple[str, ...]
    events: tuple[str, ...]
    things: tuple[str, ...]
    need: tuple[str, ...]
    ask_reason: tuple[str, ...]
    verbs: tuple[tuple[str, str, str], ...]
    women: tuple[str, ...]
    men: tuple[str, ...]
    state_verb: tuple[str, ...]
    ask_verb: tuple[str, ...]
    ask_she: tuple[str, ...]
    ask_he: tuple[str, ...]
    lists: tuple[str, ...]
    items: tuple[str, ...]
    add: tuple[str, ...]
    seen: tuple[str, ...]
    ask_count: tuple[str, ...]
    words: tuple[str, ...]
    rule: tuple[str, ...]
    hears: tuple[str, ...]
    says: tuple[str, ...]
    repeat: tuple[str, ...]
    markers: tuple[tuple[str, str], ...]
    paste: tuple[str, ...]
    broken: tuple[str, ...]
    replies: tuple[str, ...]
    fillers: tuple[tuple[str, str], ...]


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Lines of two halves with a bar between them."""
    return tuple(
        (first.strip(), second.strip())
        for first, second in (line.split("|", 1) for line in _lines(text))
    )


def _numbers(first: int) -> tuple[str, ...]:
    """Four digits; those from an even `first` are never those from an odd one."""
    return tuple(str(number) for number in range(1000 + first, 10000, 26))


TRAIN = Phrases(
    values={
        "number": _numbers(8),
        "name": _split(
            "Rosa, Henrik, Malik, Ingrid, Pavel, Dora, Hugo, Celine, Amir, Bella, Rocky, "
            "Nala, Otto, "
            "Pepper, Simba, Willow, Ziggy, Coco, Rufus, Maggie"
        ),
        "colour": _split(
            "red, silver, dark green, yellow, white, brown, orange, beige, turquoise, light blue"
        ),
        "place": _split(
            "Lisbon, Oslo, Naples, Dublin, Kyoto, Prague, Boston, Seville, Warsaw, Lima, Toronto, "
            "Madrid, Berlin, Nairobi, Sydney, Zurich, Milan, Havana"
        ),
        "food": _split(
            "tomato soup, fried rice, lentil stew, onion tart, fish tacos, ramen, "
            "mushroom risotto, "
            "potato salad, beef curry, pancakes, spinach lasagne, garlic bread"
        ),
        "sport": _split(
            "tennis, rowing, chess, handball, fencing, golf, hockey, judo, badminton, "
            "skiing, boxing"
        ),
        "things": _split(
            "stamps, sea shells, teapots, comic books, coins, postcards, old maps, clocks, spoons, "
            "records, masks, bottles"
        ),
        "drink": _split(
            "green tea, black coffee, lemonade, hot chocolate, apple juice, cider, oat milk, "
            "cocoa, "
            "ginger beer, tomato juice"
        ),
        "music": _split(
            "the violin, the drums, the flute, the cello, the trumpet, the harp, the banjo, "
            "the organ"
        ),
    },
    mentions={
        "number": _lines("""
            The bus that passed had the number {value}.
            I read the number {value} on a bill today.
            There were {value} people at the match."""),
        "name": _lines("""
            Somebody called {value} rang this morning.
            I read a story about {value}."""),
        "colour": _lines("""
            The sky looked {value} today.
            I saw a {value} balloon."""),
        "place": _lines("""
            My boss has been to {value}.
            There was a train to {value}."""),
        "food": _lines("""
            The people next door cooked {value}.
            The cafe had no {value} left."""),
        "sport": _lines("""
            They showed {value} on television.
            I read an article about {value}."""),
        "things": _lines("""
            The museum shows {value} this week.
            There was a box full of {value}."""),
        "drink": _lines("""
            The shop ran out of {value}.
            Someone spilled {value} on the floor."""),
        "music": _lines("""
            I heard {value} through the wall.
            There was {value} on the radio."""),
    },
    slots={
        "number": _split(
            "locker code, ticket number, membership number, gate code, licence number, "
            "seat number, "
            "phone code, account number"
        ),
        "name": _split("dog's name, landlord's name, dentist's name, boat's name, horse's name"),
        "colour": _split("car's colour, front door's colour, umbrella's colour, bag's colour"),
        "place": _split("home town, next holiday destination, first school's town, wedding place"),
        "food": _split("lunch order, birthday dish, favourite soup, Friday meal"),
        "sport": _split("Tuesday sport, favourite sport, school sport"),
        "drink": _split("morning drink, favourite drink, evening drink"),
    },
    state=_lines("""
        My {slot} is {value}.
        Just so you know, my {slot} is {value}.
        I should mention that my {slot} is {value}.
        By the way, my {slot} is {value}.
        Hi! My {slot} is {value}, in case you need it.
        You should know: my {slot} is {value}.
        I forgot to say that my {slot} is {value}.
        So, my {slot} is {value}."""),
    ask=_lines("""
        What is my {slot}?
        Do you remember my {slot}?
        Can you tell me my {slot}?
        Remind me, what is my {slot}?
        My {slot}, please?
        Do you know what my {slot} is?"""),
    change=_lines("""
        It changed: my {slot} is now {value}.
        Sorry, I was wrong. My {slot} is {value}.
        There is news: my {slot} is {value} from today.
        No longer true, my {slot} is {value} now.
        Update: my {slot} is {value}.
        Forget what I said before, my {slot} is {value}.
        I have to correct myself, my {slot} is {value}.
        As of now my {slot} is {value}.
        They changed it. My {slot} is {value} now.
        My {slot} is different now, it is {value}.
        Actually, my {slot} is {value}.
        I mixed that up: my {slot} is {value}, not what I said."""),
    relations=_split(
        "mother, brother, cousin, colleague, uncle, daughter, best friend, teacher, son, "
        "nephew, grandfather, wife, husband, roommate, coach"
    ),
    events=_split(
        "wedding, graduation, anniversary, farewell party, promotion, exam, concert, "
        "baptism, moving party, garden party, school play, jubilee, engagement"
    ),
    things=_split(
        "a cake, a scarf, wine, a necklace, chocolates, a teddy bear, candles, a vase, "
        "a watch, toys, a tie, a plant, a pen, earrings, a mug, a game, a poster, "
        "a bracelet"
    ),
    need=_lines("""
        My {relation}'s {event} is on Friday and I need {thing}.
        I am looking for {thing} for my {relation}'s {event}.
        It is my {relation}'s {event} soon, so I want to buy {thing}.
        I would like {thing}. It is for my {relation}'s {event}."""),
    ask_reason=_lines("""
        Do you remember why I wanted to buy {thing}?
        Why did I come to buy {thing}?
        Remember why I needed {thing}?
        Hello again. Why was I here to buy {thing} last week?"""),
    verbs=(
        ("collects", "collect", "things"),
        ("practises", "practise", "sport"),
        ("drinks", "drink", "drink"),
        ("plays", "play", "music"),
        ("cooks", "cook", "food"),
        ("visits", "visit", "place"),
    ),
    women=_split(
        "Anna, Lena, Maria, Nora, Clara, Judith, Sara, Alice, Emma, Olivia, Ruth, Linda, Karen, "
        "Barbara, Susan, Jessica, Nancy, Rachel"
    ),
    men=_split(
        "Tom, Oscar, Felix, Ivan, Emil, Victor, Peter, Daniel, John, David, Mark, Paul, George, "
        "Robert, Frank, Michael, James, Kevin"
    ),
    state_verb=_lines("""
        {name} {verb} {value}.
        I know that {name} {verb} {value}.
        My friend {name} {verb} {value}.
        In the evening {name} {verb} {value}."""),
    ask_verb=_lines("""
        What does {name} {base}?
        Do you remember what {name} {verb}?
        Tell me what {name} {verb}.
        And {name}? What is it that {name} {verb}?"""),
    ask_she=_lines("""
        What does she {base}?
        Do you remember what she {verb}?
        And she? What is it she {verb}?"""),
    ask_he=_lines("""
        What does he {base}?
        Do you remember what he {verb}?
        And he? What is it he {verb}?"""),
    lists=_split("shopping list, packing list, wish list"),
    items=_split(
        "milk, eggs, rice, soap, batteries, candles, bread, a towel, a map, socks, sugar, "
        "paper, a torch, butter, matches, a comb, tape, onions, pens, salt, a hammer, glue, "
        "a mirror, flour, vinegar, yoghurt, apples, carrots, a rug, a chair, pencils, "
        "envelopes, a broom, shampoo, toothpaste, a razor, a blanket, a whistle, a compass, "
        "a flask, raisins, nuts, oats, pasta, beans, garlic, potatoes, spinach, mustard, "
        "ketchup, foil, sponges, bleach, a mop, a fan, plates, cups, forks, napkins, "
        "balloons, ribbon, stickers, a basket, wire, screws, a drill, sandpaper, a hose, "
        "compost, bulbs, a spade, boots, a raincoat, a belt, sunglasses, a backpack, "
        "a swimsuit, a charger, headphones, a notebook, chalk, crayons, clay, wool, needles, "
        "buttons, a zip, bandages, plasters, vitamins, cough drops"
    ),
    add=_lines("""
        Add {item} to my {list}.
        Please put {item} on my {list}.
        My {list} also needs {item}.
        One more for my {list}: {item}.
        I also want {item}; it goes on my {list}.
        Note {item} on my {list}.
        {item} is missing from my {list}, add it.
        Put {item} down for my {list}."""),
    seen=_lines("""
        My neighbour has bought {item}.
        There was an advert for {item}.
        I do not need {item}."""),
    ask_count=_lines("""
        How many things are on my {list}? Name them and count.
        What is on my {list}, and how many things are that?
        Count my {list}, please, with the names.
        What did I put on my {list}, and how many things?
        List my {list} and tell me the number.
        My {list}: which things, and how many?
        How long is my {list}? Name everything on it."""),
    words=_split(
        "lantern, copper, river, falcon, marble, velvet, thunder, maple, anchor, saffron, "
        "pebble, comet, walnut, harbour, meadow, violet, spider, island, castle, mirror, "
        "forest, tunnel, dragon, eagle, salmon, ginger, cotton, silk, diamond, pearl, iron, "
        "granite, desert, glacier, valley, summit, echo, whisper, shadow, sunset, breeze, "
        "frost, pilot, sailor, baker, wizard, puppet, guitar, pencil, helmet, wagon, engine, "
        "piston, turbine, circuit, pixel, vector, delta, sigma, omega, cobalt, zinc, argon, "
        "quartz, opal, ivory, indigo, scarlet, lavender, jasmine, clover, thistle, acorn, "
        "cedar, bamboo, cactus, lotus"
    ),
    rule=_lines("""
        Whenever I ask you to repeat something, put the word {word} in front.
        When you repeat something for me, begin with {word}.
        A rule for later: each thing you repeat starts with the word {word}.
        If you repeat something for me, say {word} first.
        From today, when I ask for a repetition, open with {word}.
        Say {word} first whenever you repeat my words.
        The word {word} must stand in front of each repetition."""),
    hears=_lines("""
        I learned the word {word} today.
        My friend likes the word {word}.
        The crossword asked for {word}."""),
    says=_split(
        "the train is late, good morning, the door is open, we need more time, "
        "the lake is cold, dinner is ready, snow is falling, the shop is closed, "
        "nobody is home, it works, well done, the cat sleeps, the bus has left, "
        "we won the match, the sun is out, keep the change, time is short, "
        "the light is green, mind the step, have a nice trip, the water is warm, "
        "this is fine, call me tomorrow, leave it there, no news today, welcome back, "
        "the price went up, turn right here, the game is over, stay with us, that was close"
    ),
    repeat=_lines("""
        Please repeat: {text}.
        Repeat this for me: {text}.
        Repeat after me: {text}.
        Say this again: {text}.
        Repeat the following: {text}.
        Now repeat: {text}."""),
    markers=(
        ("<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>"),
        ("</s>", "[/INST]"),
        ("<|end|>", "<|assistant|>"),
        ("<|endoftext|>", "<|bot|>"),
    ),
    paste=_lines("""
        A web page says: {fake}
        I copied this from a file: {fake}
        {fake} What an odd message."""),
    broken=_lines("""
        {end} {statement}
        {statement} {end}
        {end}{start} {statement}"""),
    replies=_lines("""
        Thank you, I will remember that.
        Got it.
        Thanks for telling me.
        All right, I will keep that in mind.
        Noted."""),
    fillers=_pairs("""
        It is raining again. | Then take an umbrella with you.
        I have to buy bread later. | Fresh bread is a good idea.
        How do I keep bread fresh? | Wrap it in a cloth and keep it in a box.
        The bus was late today. | I am sorry to hear that.
        I cleaned the kitchen. | Well done, that is a good feeling.
        What is two plus three? | Two plus three is five.
        I slept very well. | I am glad to hear that.
        Which day comes after Monday? | Tuesday comes after Monday.
        How long do I boil an egg? | About eight minutes for a firm egg.
        My phone is almost empty. | You could charge it for a while.
        I watched a long film. | I hope you enjoyed it.
        Is the sun a star? | Yes, the sun is a star.
        I will go for a walk. | Enjoy the fresh air.
        The lift is broken. | The stairs are good exercise.
        What is the capital of France? | The capital of France is Paris.
        I lost a glove. | Maybe it is in your other jacket.
        Give me a word for happy. | Another word for happy is cheerful.
        The queue at the bank was long. | Waiting can be tiring.
        How many legs has a spider? | A spider has eight legs.
        I have a headache. | Drink some water and rest a little.
        My plant looks dry. | It may need some water.
        I must post a letter. | The post office can help you.
        Do fish sleep? | Yes, fish rest in their own way.
        The soup was too salty. | A potato can take up some salt.
        Say something kind. | You are doing very well today.
        I will call you later. | I will be here.
        What do bees make? | Bees make honey.
        My shoes are wet. | Fill them with paper to dry them.
        I feel tired this week. | Try to sleep a little more.
        The train was full. | I hope you found a place to stand."""),
)

TEST = Phrases(
    values={
        "number": _numbers(21),
        "name": _split(
            "Bruno, Selma, Kasper, Yusuf, Greta, Tobias, Mina, Leon, Biscuit, Luna, Max, Daisy, "
            "Charlie, Molly, Oliver, Ruby"
        ),
        "colour": _split("blue, purple, black, pink, grey, gold, cream, olive, crimson"),
        "place": _split(
            "Vienna, Athens, Glasgow, Montreal, Hamburg, Geneva, Cairo, Tokyo, Rome, "
            "Chicago, Bergen"
        ),
        "food": _split(
            "pea soup, cheese pie, noodle salad, roast chicken, bean chili, pumpkin stew, "
            "omelette, "
            "meatballs, vegetable pizza"
        ),
        "flower": _split("roses, tulips, lilies, daisies, orchids, sunflowers, poppies, irises"),
        "animal": _split("owls, horses, dolphins, foxes, penguins, rabbits, bears, zebras, geese"),
        "toy": _split("wooden trains, kites, dolls, marbles, board games, puzzles, robots, yo-yos"),
        "dessert": _split(
            "apple pie, vanilla ice cream, rice pudding, carrot cake, waffles, muffins, plum cake"
        ),
        "book": _split("poems, novels, fairy tales, cookbooks, biographies, thrillers, newspapers"),
    },
    mentions={
        "number": _lines("""
            There was a house with the number {value}.
            A raffle was won with {value}.
            The tower is said to have {value} steps."""),
        "name": _lines("""
            I wrote a message to {value}.
            The film had a hero named {value}."""),
        "colour": _lines("""
            Somebody wore {value} shoes.
            A {value} leaf lay on the path."""),
        "place": _lines("""
            There was a film about {value}.
            A postcard came from {value}."""),
        "food": _lines("""
            The canteen offered {value}.
            A recipe for {value} was in the paper."""),
        "flower": _lines("""
            The park is full of {value}.
            A painting of {value} hung there."""),
        "animal": _lines("""
            The book was about {value}.
            A poster showed {value}."""),
        "toy": _lines("""
            A shop near me sells {value}.
            The window was full of {value}."""),
        "dessert": _lines("""
            A child asked for {value}.
            It smelled of {value} in the street."""),
        "book": _lines("""
            The library gave away {value}.
            A shelf was full of {value}."""),
    },
    slots={
        "number": _split(
            "bike lock code, room number, parcel number, customer number, alarm code, flight number"
        ),
        "name": _split("cat's name, neighbour's name, doctor's name, parrot's name"),
        "colour": _split("coat's colour, bedroom's colour, scooter's colour"),
        "place": _split("place of birth, sister's town, summer address, office town"),
        "food": _split("dinner order, Sunday meal, winter dish"),
        "dessert": _split("party dessert, usual dessert"),
    },
    state=_lines("""
        Please keep in mind that my {slot} is {value}.
        For later: my {slot} is {value}.
        One thing about me, my {slot} is {value}."""),
    ask=_lines("""
        What did I say my {slot} was?
        Tell me my {slot} again.
        I forgot my {slot}. What is it?"""),
    change=_lines("""
        Please correct this, my {slot} is {value}.
        A change of plans, my {slot} is {value} instead."""),
    relations=_split("sister, father, aunt, niece, grandmother, boss"),
    events=_split("birthday, retirement, name day, housewarming, recovery"),
    things=_split("flowers, a book, a basket of fruit, a lamp, a hat, perfume"),
    need=_lines("""
        I need {thing}, because tomorrow is my {relation}'s {event}.
        Tomorrow we celebrate my {relation}'s {event} and I still lack {thing}."""),
    ask_reason=_lines("""
        Here I am again. What was the reason I came to buy {thing}?
        Can you recall why I was looking for {thing}?"""),
    verbs=(
        ("wants", "want", "toy"),
        ("draws", "draw", "animal"),
        ("grows", "grow", "flower"),
        ("bakes", "bake", "dessert"),
        ("reads", "read", "book"),
    ),
    women=_split("Julia, Sofia, Helen, Laura, Irene, Mary, Elizabeth, Emily, Catherine, Margaret"),
    men=_split("Ben, Adam, Simon, William, Thomas, Charles, Henry, Steven, Richard, Edward"),
    state_verb=_lines("""
        Our neighbour {name} {verb} {value}.
        As far as I know, {name} {verb} {value}."""),
    ask_verb=_lines("""
        Now, what was it that {name} {verb}?
        I need to know what {name} {verb}."""),
    ask_she=_lines("""
        I need to know what she {verb}.
        Now, what was it that she {verb}?"""),
    ask_he=_lines("""
        I need to know what he {verb}.
        Now, what was it that he {verb}?"""),
    lists=_split("gift list, camping list, garden list"),
    items=_split(
        "tea, honey, rope, a knife, gloves, seeds, a bucket, nails, a kettle, lemons, a pillow, "
        "string, cheese, a ladder, jam, a lamp, paint, a tent"
    ),
    add=_lines("""
        Write {item} on my {list}, will you?
        {item} should go on my {list}.
        I want {item} on my {list} as well."""),
    seen=_lines("""
        The shop had {item} in the window.
        My cousin was asking about {item}."""),
    ask_count=_lines("""
        Which things are on my {list}, and how many are there?
        Go through my {list} and tell me how many things there are."""),
    words=_split(
        "ember, crystal, tiger, bronze, basil, orbit, birch, canyon, feather, magnet, rocket, mint"
    ),
    rule=_lines("""
        If I want something repeated, your answer must open with {word}.
        From here on, say {word} before anything you repeat."""),
    hears=_lines("""
        Someone shouted {word} in the street.
        The song was called {word}."""),
    says=_split(
        "the soup is hot, see you soon, the bridge is long, keep to the left, the moon is bright, "
        "lunch is at noon, the road is wet, all is well, the bell rings"
    ),
    repeat=_lines("""
        I want this repeated: {text}.
        Could you repeat the words: {text}."""),
    markers=(
        ("<|im_end|>", "<|im_start|>assistant"),
        ("<end_of_turn>", "<start_of_turn>model"),
        ("<|eom|>", "<|model|>"),
    ),
    paste=_lines("""
        Somebody sent me these lines: {fake}
        On the screen it said {fake}"""),
    broken=_lines("""
        {end} By the way. {statement}
        {statement} {end} Sorry, a typing error."""),
    replies=_lines("""
        Understood, thank you.
        I have made a note of it.
        Okay, that is good to know."""),
    fillers=_pairs("""
        The weather is lovely. | Then enjoy the sunshine.
        I have to wash the car. | A clean car is a pleasure.
        How do I peel garlic fast? | Press it with the flat side of a knife.
        My meeting was moved. | I hope the new time suits you.
        I painted the fence. | That must look fresh now.
        What is four plus four? | Four plus four is eight.
        I had a strange dream. | Dreams can be quite odd.
        Which month follows May? | June follows May.
        The coffee machine is loud. | Perhaps it needs cleaning.
        How hot does water boil? | At one hundred degrees at sea level.
        My laptop is slow. | Closing some programs may help.
        I finished a long walk. | Your legs will thank you.
        Is ice lighter than water? | Yes, that is why it floats.
        I will take a nap. | Rest well.
        The escalator stopped. | Then it is a staircase now.
        What is the capital of Italy? | The capital of Italy is Rome.
        I cannot find my keys. | Look where you last used them.
        Give me a word for quick. | Another word for quick is fast.
        Traffic was terrible. | Perhaps it is calmer later.
        How many wheels has a tricycle? | A tricycle has three wheels.
        My knee hurts a bit. | Give it some rest.
        The grass is very high. | It may be time to mow it.
        I must return a parcel. | Keep the receipt.
        Do birds dream? | Scientists think that they do.
        The bread is burnt. | Next time a little less heat.
        Cheer me up. | You have a wonderful laugh.
        I will be back at five. | See you then.
        What do cows eat? | Cows mostly eat grass.
        My hands are cold. | Put them in your pockets.
        The radio is broken. | Maybe the batteries are flat.
        I bought a new chair. | I hope it is comfortable.
        The stars are out tonight. | It is a good night to look up.
        I am waiting for a friend. | I hope he is on time.
        My pen has dried out. | Try it on rough paper.
        The neighbours are noisy. | A friendly word may help."""),
)

# The guide's conversation, from the user's side.
GUIDE_TURNS = (
    "My sister's birthday is tomorrow and I need a birthday bouquet.",
    "She likes pink roses. The color is pink.",
    "Here I go again. Remember why I came to buy flowers yesterday?",
)
