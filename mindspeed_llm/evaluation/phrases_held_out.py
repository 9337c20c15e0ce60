"""Owns the words of mt-recall's test; it does not know those of the training part."""

from __future__ import annotations

from mindspeed_llm.evaluation.phrases import Phrases, lines, numbers, pairs, split

TEST = Phrases(
    values={
        "number": numbers(21),
        "name": split(
            "Bruno, Selma, Kasper, Yusuf, Greta, Tobias, Mina, Leon, Biscuit, Luna, Max, Daisy, "
            "Charlie, Molly, Oliver, Ruby"
        ),
        "colour": split("blue, purple, black, pink, grey, gold, cream, olive, crimson"),
        "place": split(
            "Vienna, Athens, Glasgow, Montreal, Hamburg, Geneva, Cairo, Tokyo, Rome, "
            "Chicago, Bergen"
        ),
        "food": split(
            "pea soup, cheese pie, noodle salad, roast chicken, bean chili, pumpkin stew, "
            "omelette, "
            "meatballs, vegetable pizza"
        ),
        "flower": split("roses, tulips, lilies, daisies, orchids, sunflowers, poppies, irises"),
        "animal": split("owls, horses, dolphins, foxes, penguins, rabbits, bears, zebras, geese"),
        "toy": split("wooden trains, kites, dolls, marbles, board games, puzzles, robots, yo-yos"),
        "dessert": split(
            "apple pie, vanilla ice cream, rice pudding, carrot cake, waffles, muffins, plum cake"
        ),
        "book": split("poems, novels, fairy tales, cookbooks, biographies, thrillers, newspapers"),
    },
    mentions={
        "number": lines("""
            There was a house with the number {value}.
            A raffle was won with {value}.
            The tower is said to have {value} steps."""),
        "name": lines("""
            I wrote a message to {value}.
            The film had a hero named {value}."""),
        "colour": lines("""
            Somebody wore {value} shoes.
            A {value} leaf lay on the path."""),
        "place": lines("""
            There was a film about {value}.
            A postcard came from {value}."""),
        "food": lines("""
            The canteen offered {value}.
            A recipe for {value} was in the paper."""),
        "flower": lines("""
            The park is full of {value}.
            A painting of {value} hung there."""),
        "animal": lines("""
            The book was about {value}.
            A poster showed {value}."""),
        "toy": lines("""
            A shop near me sells {value}.
            The window was full of {value}."""),
        "dessert": lines("""
            A child asked for {value}.
            It smelled of {value} in the street."""),
        "book": lines("""
            The library gave away {value}.
            A shelf was full of {value}."""),
    },
    slots={
        "number": split(
            "bike lock code, room number, parcel number, customer number, alarm code, flight number"
        ),
        "name": split("cat's name, neighbour's name, doctor's name, parrot's name"),
        "colour": split("coat's colour, bedroom's colour, scooter's colour"),
        "place": split("place of birth, sister's town, summer address, office town"),
        "food": split("dinner order, Sunday meal, winter dish"),
        "dessert": split("party dessert, usual dessert"),
    },
    state=lines("""
        Please keep in mind that my {slot} is {value}.
        For later: my {slot} is {value}.
        One thing about me, my {slot} is {value}."""),
    ask=lines("""
        What did I say my {slot} was?
        Tell me my {slot} again.
        I forgot my {slot}. What is it?"""),
    change=lines("""
        Please correct this, my {slot} is {value}.
        A change of plans, my {slot} is {value} instead."""),
    relations=split("sister, father, aunt, niece, grandmother, boss"),
    events=split("birthday, retirement, name day, housewarming, recovery"),
    things=split("flowers, a book, a basket of fruit, a lamp, a hat, perfume"),
    need=lines("""
        I need {thing}, because tomorrow is my {relation}'s {event}.
        Tomorrow we celebrate my {relation}'s {event} and I still lack {thing}."""),
    ask_reason=lines("""
        Here I am again. What was the reason I came to buy {thing}?
        Can you recall why I was looking for {thing}?"""),
    verbs=(
        ("wants", "want", "toy"),
        ("draws", "draw", "animal"),
        ("grows", "grow", "flower"),
        ("bakes", "bake", "dessert"),
        ("reads", "read", "book"),
    ),
    women=split("Julia, Sofia, Helen, Laura, Irene, Mary, Elizabeth, Emily, Catherine, Margaret"),
    men=split("Ben, Adam, Simon, William, Thomas, Charles, Henry, Steven, Richard, Edward"),
    state_verb=lines("""
        Our neighbour {name} {verb} {value}.
        As far as I know, {name} {verb} {value}."""),
    ask_verb=lines("""
        Now, what was it that {name} {verb}?
        I need to know what {name} {verb}."""),
    ask_she=lines("""
        I need to know what she {verb}.
        Now, what was it that she {verb}?"""),
    ask_he=lines("""
        I need to know what he {verb}.
        Now, what was it that he {verb}?"""),
    lists=split("gift list, camping list, garden list"),
    items=split(
        "tea, honey, rope, knives, gloves, seeds, buckets, nails, kettles, lemons, pillows, "
        "string, cheese, ladders, jam, vases, paint, tents"
    ),
    add=lines("""
        Write {item} on my {list}, will you?
        {item} should go on my {list}.
        I want {item} on my {list} as well."""),
    seen=lines("""
        The shop had {item} in the window.
        My cousin was asking about {item}."""),
    ask_count=lines("""
        Which things are on my {list}, and how many are there?
        Go through my {list} and tell me how many things there are."""),
    words=split(
        "ember, crystal, tiger, bronze, basil, orbit, birch, canyon, feather, magnet, rocket, mint"
    ),
    rule=lines("""
        If I want something repeated, your answer must open with {word}.
        From here on, say {word} before anything you repeat."""),
    hears=lines("""
        Someone shouted {word} in the street.
        The song was called {word}."""),
    says=split(
        "the soup is hot, see you soon, the bridge is long, keep to the left, the moon is bright, "
        "lunch is at noon, the road is wet, all is well, the bell rings"
    ),
    repeat=lines("""
        I want this repeated: {text}.
        Could you repeat the words: {text}."""),
    markers=(
        ("<|im_end|>", "<|im_start|>assistant"),
        ("<end_of_turn>", "<start_of_turn>model"),
        ("<|eom|>", "<|model|>"),
    ),
    paste=lines("""
        Somebody sent me these lines: {fake}
        On the screen it said {fake}"""),
    broken=lines("""
        {end} By the way. {statement}
        {statement} {end} Sorry, a typing error."""),
    replies=lines("""
        Understood, thank you.
        I have made a note of it.
        Okay, that is good to know."""),
    fillers=pairs("""
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
