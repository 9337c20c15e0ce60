"""Owns the words of mt-recall's training part; it does not know those of the test, from which they
differ in every name, item and phrasing."""

from __future__ import annotations

from mindspeed_llm.evaluation.phrases import Phrases, lines, numbers, pairs, split

_STATE = lines("""
    My {slot} is {value}.
    Just so you know, my {slot} is {value}.
    I should mention that my {slot} is {value}.
    By the way, my {slot} is {value}.
    Hi! My {slot} is {value}, in case you need it.
    You should know: my {slot} is {value}.
    I forgot to say that my {slot} is {value}.
    So, my {slot} is {value}.
    You may want to note that my {slot} is {value}.
    My {slot}? It is {value}.
    It helps to know that my {slot} is {value}.
    Remember this: my {slot} is {value}.
    {value} is my {slot}, by the way.
    I have to tell you that my {slot} is {value}.
    Please note my {slot}: {value}.
    To introduce myself: my {slot} is {value}.
    A detail for you: my {slot} is {value}.
    Take note, my {slot} is {value}.
    Let me tell you my {slot}: it is {value}.""")

TRAIN = Phrases(
    values={
        "number": numbers(8),
        "name": split(
            "Rosa, Henrik, Malik, Ingrid, Pavel, Dora, Hugo, Celine, Amir, Bella, Rocky, "
            "Nala, Otto, "
            "Pepper, Simba, Willow, Ziggy, Coco, Rufus, Maggie"
        ),
        "colour": split(
            "red, silver, dark green, yellow, white, brown, orange, beige, turquoise, light blue"
        ),
        "place": split(
            "Lisbon, Oslo, Naples, Dublin, Kyoto, Prague, Boston, Seville, Warsaw, Lima, Toronto, "
            "Madrid, Berlin, Nairobi, Sydney, Zurich, Milan, Havana"
        ),
        "food": split(
            "tomato soup, fried rice, lentil stew, onion tart, fish tacos, ramen, "
            "mushroom risotto, "
            "potato salad, beef curry, pancakes, spinach lasagne, garlic bread"
        ),
        "sport": split(
            "tennis, rowing, chess, handball, fencing, golf, hockey, judo, badminton, "
            "skiing, boxing"
        ),
        "things": split(
            "stamps, sea shells, teapots, comic books, coins, postcards, old maps, clocks, spoons, "
            "records, masks, bottles"
        ),
        "drink": split(
            "green tea, black coffee, lemonade, hot chocolate, apple juice, cider, oat milk, "
            "cocoa, "
            "ginger beer, tomato juice"
        ),
        "fruit": split(
            "plums, cherries, bananas, grapes, peaches, melons, figs, pears, oranges, mangoes"
        ),
        "machine": split(
            "radios, bicycles, lawn mowers, sewing machines, tractors, cameras, printers, lamps, "
            "motorbikes, pianos"
        ),
        "subject": split(
            "physics, history, Latin, geography, biology, law, medicine, philosophy, chemistry, "
            "astronomy"
        ),
        "text": split(
            "letters, songs, speeches, plays, reports, short stories, reviews, jokes, essays, "
            "diaries"
        ),
        "music": split(
            "the violin, the drums, the flute, the cello, the trumpet, the harp, the banjo, "
            "the organ"
        ),
    },
    mentions={
        "number": lines("""
            The bus that passed had the number {value}.
            I read the number {value} on a bill today.
            There were {value} people at the match."""),
        "name": lines("""
            Somebody called {value} rang this morning.
            I read a story about {value}."""),
        "colour": lines("""
            The sky looked {value} today.
            I saw a {value} balloon."""),
        "place": lines("""
            My boss has been to {value}.
            There was a train to {value}."""),
        "food": lines("""
            The people next door cooked {value}.
            The cafe had no {value} left."""),
        "sport": lines("""
            They showed {value} on television.
            I read an article about {value}."""),
        "things": lines("""
            The museum shows {value} this week.
            There was a box full of {value}."""),
        "drink": lines("""
            The shop ran out of {value}.
            Someone spilled {value} on the floor."""),
        "fruit": lines("""
            The market had {value} today.
            There is a bowl of {value} at work."""),
        "machine": lines("""
            A van full of {value} stood outside.
            The auction was about {value}."""),
        "subject": lines("""
            There was a quiz about {value}.
            My old school no longer teaches {value}."""),
        "text": lines("""
            The shelf was full of {value}.
            There was a contest for {value}."""),
        "music": lines("""
            I heard {value} through the wall.
            There was {value} on the radio."""),
    },
    slots={
        "number": split(
            "locker code, ticket number, membership number, gate code, licence number, "
            "seat number, "
            "phone code, account number, badge number, table number, garage code, order number, "
            "house number, bank code"
        ),
        "name": split(
            "dog's name, landlord's name, dentist's name, boat's name, horse's name, "
            "teacher's name, manager's name, hamster's name, street's name"
        ),
        "colour": split(
            "car's colour, front door's colour, umbrella's colour, bag's colour, "
            "bike's colour, kitchen's colour, phone's colour"
        ),
        "place": split(
            "home town, next holiday destination, first school's town, wedding place, "
            "dream city, brother's city, winter address"
        ),
        "food": split("lunch order, birthday dish, favourite soup, Friday meal, usual breakfast"),
        "sport": split("Tuesday sport, favourite sport, school sport"),
        "drink": split("morning drink, favourite drink, evening drink"),
    },
    state=_STATE,
    ask=lines("""
        What is my {slot}?
        Do you remember my {slot}?
        Can you tell me my {slot}?
        Remind me, what is my {slot}?
        My {slot}, please?
        Do you know what my {slot} is?
        And what is my {slot}?
        What was my {slot}, by the way?
        Which {slot} did I give you?
        Say my {slot}, please.
        I need my {slot} now.
        Could you look up my {slot}?
        Have you got my {slot}?
        My memory is bad. What was my {slot}?
        Quick question: what is my {slot}?
        Name my {slot}.
        Please give me my {slot}.
        I told you about my {slot}. What is it?"""),
    # Often no word says that it is a change: the later value counts all the same.
    change=_STATE
    + lines("""
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
        I mixed that up: my {slot} is {value}, not what I said.
        My {slot} was changed to {value}.
        Replace my {slot} with {value}.
        Since this morning my {slot} is {value}.
        I made a mistake, my {slot} is {value}.
        New information: my {slot} is {value}.
        Not any more. My {slot} is {value} by now.
        From now on my {slot} is {value}.
        My {slot} is no longer that, but {value}.
        Hold on, my {slot} is {value} after all.
        I got a new one: my {slot} is {value}.
        Small correction: my {slot} is {value}.
        I have decided otherwise, my {slot} is {value} now.
        On second thought, my {slot} is {value}.
        My {slot} has become {value}.
        Let me take that back, my {slot} is {value}.
        Oh, my {slot} is {value} these days.
        By now my {slot} is {value}, please remember the new one.
        I told you the wrong thing: my {slot} is {value}."""),
    relations=split(
        "mother, brother, cousin, colleague, uncle, daughter, best friend, teacher, son, "
        "nephew, grandfather, wife, husband, roommate, coach"
    ),
    events=split(
        "wedding, graduation, anniversary, farewell party, promotion, exam, concert, "
        "baptism, moving party, garden party, school play, jubilee, engagement"
    ),
    things=split(
        "a cake, a scarf, wine, a necklace, chocolates, a teddy bear, candles, a vase, "
        "a watch, toys, a tie, a plant, a pen, earrings, a mug, a game, a poster, "
        "a bracelet, a box of tea, a pair of gloves, a piece of cheese, a bag of nuts"
    ),
    need=lines("""
        My {relation}'s {event} is on Friday and I need {thing}.
        I am looking for {thing} for my {relation}'s {event}.
        It is my {relation}'s {event} soon, so I want to buy {thing}.
        I would like {thing}. It is for my {relation}'s {event}.
        I must find {thing}, it is my {relation}'s {event} next week.
        Could you help me find {thing}? It is for my {relation}'s {event}.
        For my {relation}'s {event} I want {thing}.
        Next Sunday is my {relation}'s {event}. I thought of {thing}.
        I came in because of my {relation}'s {event}: I need {thing}.
        Do you sell {thing}? My {relation}'s {event} is coming up.
        {thing} would be right for my {relation}'s {event}, I think.
        I promised {thing} for my {relation}'s {event}.
        We plan my {relation}'s {event}, and I am to bring {thing}.
        My {relation}'s {event} is next month and I need {thing} for it."""),
    ask_reason=lines("""
        Do you remember why I wanted to buy {thing}?
        Why did I come to buy {thing}?
        Remember why I needed {thing}?
        Hello again. Why was I here to buy {thing} last week?
        What did I want {thing} for?
        Why was it that I asked for {thing}?
        I was here for {thing}. For what occasion?
        For whom and for what did I want {thing}?
        It is me again. Why did I want {thing}?
        Do you still know why I needed {thing}?
        Yesterday I came for {thing}. Do you know why?
        Can you say why I wanted {thing}?"""),
    verbs=(
        ("collects", "collect", "things"),
        ("practises", "practise", "sport"),
        ("drinks", "drink", "drink"),
        ("plays", "play", "music"),
        ("cooks", "cook", "food"),
        ("visits", "visit", "place"),
        ("sells", "sell", "fruit"),
        ("repairs", "repair", "machine"),
        ("studies", "study", "subject"),
        ("writes", "write", "text"),
        ("eats", "eat", "food"),
        ("teaches", "teach", "sport"),
        ("orders", "order", "drink"),
        ("loves", "love", "place"),
    ),
    women=split(
        "Anna, Lena, Maria, Nora, Clara, Judith, Sara, Alice, Emma, Olivia, Ruth, Linda, Karen, "
        "Barbara, Susan, Jessica, Nancy, Rachel"
    ),
    men=split(
        "Tom, Oscar, Felix, Ivan, Emil, Victor, Peter, Daniel, John, David, Mark, Paul, George, "
        "Robert, Frank, Michael, James, Kevin"
    ),
    state_verb=lines("""
        {name} {verb} {value}.
        I know that {name} {verb} {value}.
        My friend {name} {verb} {value}.
        In the evening {name} {verb} {value}.
        {name} {verb} {value}, did you know?
        Every week {name} {verb} {value}.
        It is true that {name} {verb} {value}.
        At home {name} {verb} {value}.
        My colleague {name} {verb} {value}.
        They say {name} {verb} {value}.
        Since last year {name} {verb} {value}."""),
    ask_verb=lines("""
        What does {name} {base}?
        Do you remember what {name} {verb}?
        Tell me what {name} {verb}.
        And {name}? What is it that {name} {verb}?
        Do you know what {name} {verb}?
        What is it {name} {verb}?
        I told you about {name}. What does {name} {base}?
        Say what {name} {verb}.
        Remember {name}? What does {name} {base}?
        What does my friend {name} {base}?"""),
    ask_she=lines("""
        What does she {base}?
        Do you remember what she {verb}?
        And she? What is it she {verb}?
        Do you know what she {verb}?
        Tell me what she {verb}.
        What is it she {verb}?
        Say what she {verb}.
        What about her? What does she {base}?
        I told you about her. What does she {base}?"""),
    ask_he=lines("""
        What does he {base}?
        Do you remember what he {verb}?
        And he? What is it he {verb}?
        Do you know what he {verb}?
        Tell me what he {verb}.
        What is it he {verb}?
        Say what he {verb}.
        What about him? What does he {base}?
        I told you about him. What does he {base}?"""),
    lists=split(
        "shopping list, packing list, wish list, party list, picnic list, office list, "
        "kitchen list, repair list, moving list, holiday list, school list, guest list"
    ),
    items=split(
        "milk, eggs, rice, soap, batteries, candles, bread, towels, maps, socks, sugar, paper, "
        "torches, butter, matches, combs, tape, onions, pens, salt, hammers, glue, mirrors, "
        "flour, vinegar, yoghurt, apples, carrots, rugs, chairs, pencils, envelopes, brooms, "
        "shampoo, toothpaste, razors, blankets, whistles, compasses, flasks, raisins, nuts, "
        "oats, pasta, beans, garlic, potatoes, spinach, mustard, ketchup, foil, sponges, "
        "bleach, mops, fans, plates, cups, forks, napkins, balloons, ribbon, stickers, "
        "baskets, wire, screws, drills, sandpaper, hoses, compost, bulbs, spades, boots, "
        "raincoats, belts, sunglasses, backpacks, swimsuits, chargers, headphones, notebooks, "
        "chalk, crayons, clay, wool, needles, buttons, zips, bandages, plasters, vitamins, "
        "cough drops, thread, yarn, cord, cable, cloth, felt, lace, cotton, leather, gravel, "
        "cement, timber, plywood, varnish, wax, ink, oil, straw, hay, turf, cork, coal, "
        "netting, elastic, tinsel"
    ),
    add=lines("""
        Add {item} to my {list}.
        Please put {item} on my {list}.
        My {list} also needs {item}.
        One more for my {list}: {item}.
        I also want {item}; it goes on my {list}.
        Note {item} on my {list}.
        My {list} is still without {item}.
        Put {item} down for my {list}.
        {item}, please, for my {list}.
        My {list} gets {item}.
        Next on my {list}: {item}.
        For my {list} I need {item}.
        Do not forget {item} for my {list}.
        Another thing for my {list} is {item}.
        {item} must be on my {list}.
        Then there is {item} for my {list}.
        Extend my {list} by {item}.
        Include {item} in my {list}."""),
    seen=lines("""
        My neighbour has bought {item}.
        There was an advert for {item}.
        I do not need {item}.
        Someone left {item} on the stairs.
        I sold {item} last year.
        We keep {item} in the cellar.
        Have you seen the price of {item}?
        I dreamed of {item}."""),
    ask_count=lines("""
        How many things are on my {list}? Name them and count.
        What is on my {list}, and how many things are that?
        Count my {list}, please, with the names.
        What did I put on my {list}, and how many things?
        List my {list} and tell me the number.
        My {list}: which things, and how many?
        How long is my {list}? Name everything on it.
        Tell me everything on my {list} and the total.
        Give me my {list} with the number of things.
        I want to hear my {list}. How many things is it?
        Read out my {list} and count the things.
        What do I have on my {list}? How many?
        Name each thing on my {list}, and the number.
        How many things did I note for my {list}? Say which.
        Sum up my {list}: the things and their number."""),
    words=split(
        "lantern, copper, river, falcon, marble, velvet, thunder, maple, anchor, saffron, "
        "pebble, comet, walnut, harbour, meadow, violet, spider, island, castle, mirror, "
        "forest, tunnel, dragon, eagle, salmon, ginger, cotton, silk, diamond, pearl, iron, "
        "granite, desert, glacier, valley, summit, echo, whisper, shadow, sunset, breeze, "
        "frost, pilot, sailor, baker, wizard, puppet, guitar, pencil, helmet, wagon, engine, "
        "piston, turbine, circuit, pixel, vector, delta, sigma, omega, cobalt, zinc, argon, "
        "quartz, opal, ivory, indigo, scarlet, lavender, jasmine, clover, thistle, acorn, "
        "cedar, bamboo, cactus, lotus"
    ),
    rule=lines("""
        Whenever I ask you to repeat something, put the word {word} in front.
        When you repeat something for me, begin with {word}.
        A rule for later: each thing you repeat starts with the word {word}.
        If you repeat something for me, say {word} first.
        From today, when I ask for a repetition, open with {word}.
        Say {word} first whenever you repeat my words.
        The word {word} must stand in front of each repetition.
        Begin each repetition with the word {word}.
        Each time you repeat my words, start with {word}.
        Here is a game: before you repeat something, say {word}.
        Please put {word} before everything that I ask you to repeat.
        If I say repeat, start your reply with {word}.
        My wish: repetitions start with {word}.
        When I want to hear something again, say {word} first.
        Let us agree that you say {word} before you repeat me.
        Your repetitions shall start with {word}.
        Always say {word} ahead of a repetition.
        Before a repetition comes the word {word}, all right?
        As a rule, {word} comes first when you repeat.
        For all repetitions: {word} in front."""),
    hears=lines("""
        I learned the word {word} today.
        My friend likes the word {word}.
        The crossword asked for {word}.
        Do you like the word {word}?
        My horse was once called {word}.
        I saw {word} written on a wall."""),
    says=split(
        "the train is late, good morning, the door is open, we need more time, "
        "the lake is cold, dinner is ready, snow is falling, the shop is closed, "
        "nobody is home, it works, well done, the cat sleeps, the bus has left, "
        "we won the match, the sun is out, keep the change, time is short, "
        "the light is green, mind the step, have a nice trip, the water is warm, "
        "this is fine, call me tomorrow, leave it there, no news today, welcome back, "
        "the window is broken, my tea is cold, we are almost there, the dog is asleep, "
        "prices fall in spring, bring a friend, the file is lost, look at the sky, "
        "ten more minutes, the key is under the mat, do not worry, it starts at nine, "
        "the wind is strong, your turn now, the milk is sour, I like this song, "
        "we met in June, the box is empty, thanks for coming, the paint is dry, "
        "hold the line, take the second street, he left early, the cake is sweet, "
        "birds fly south, nothing has changed, open the second drawer, the show must go on, "
        "the price went up, turn right here, the game is over, stay with us, that was close"
    ),
    repeat=lines("""
        Please repeat: {text}.
        Repeat this for me: {text}.
        Repeat after me: {text}.
        Say this again: {text}.
        Repeat the following: {text}.
        Now repeat: {text}.
        Say it back to me: {text}.
        Repeat: {text}.
        Can you repeat this? {text}.
        Please say again: {text}.
        One to repeat: {text}.
        Echo this: {text}.
        I would like you to repeat: {text}.
        This should be repeated: {text}.
        I need this said again: {text}.
        I want to hear it once more: {text}.
        Would you say these words again: {text}.
        The words to be repeated are: {text}.
        Repeat my words: {text}."""),
    markers=(
        ("<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>"),
        ("</s>", "[/INST]"),
        ("<|end|>", "<|assistant|>"),
        ("<|endoftext|>", "<|bot|>"),
    ),
    paste=lines("""
        A web page says: {fake}
        I copied this from a file: {fake}
        {fake} What an odd message.
        My cousin forwarded this: {fake}
        There was this line in the log: {fake}
        What is this? {fake}
        {fake} That was on a poster."""),
    broken=lines("""
        {end} {statement}
        {statement} {end}
        {end}{start} {statement}
        {end}{end} {statement}
        Hello {end} {statement}
        {statement} {end} {end}
        {start} {statement}"""),
    replies=lines("""
        Thank you, I will remember that.
        Got it.
        Thanks for telling me.
        All right, I will keep that in mind.
        Noted.
        I will remember it.
        Thanks, noted.
        All right.
        Sure, I have that."""),
    fillers=pairs("""
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
