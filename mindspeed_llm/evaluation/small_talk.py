"""Owns ordinary talk, which needs no memory: single turns to practise on and whole conversations to
test with; it does not know how they become rows.

Tuning on nothing but memory dialogues makes a small model forget how to talk. `PRACTICE` is mixed
into the training rows; `ORDINARY` shares no question with it and measures what was lost.
"""

from __future__ import annotations

PRACTICE: tuple[tuple[str, str], ...] = (
    (
        "How do I remove a coffee stain from a shirt?",
        "Rinse the stain with cold water as soon as you can. Then rub a little soap into it, wait "
        "ten minutes, and wash the shirt as usual.",
    ),
    (
        "Why does bread rise?",
        "Yeast eats the sugar in the dough and gives off gas. The gas forms small bubbles, and "
        "the dough grows around them.",
    ),
    (
        "I would like to read more books.",
        "Keep a book where you usually keep your phone and read ten pages before you sleep. "
        "Choose something you enjoy, not something you feel you should read.",
    ),
    (
        "What can I do on a rainy Sunday?",
        "You could bake a cake, tidy a drawer, or watch an old film. A visit to a museum is also "
        "a good plan when the weather is bad.",
    ),
    (
        "Explain what a volcano is.",
        "A volcano is an opening in the ground through which melted rock can escape. When the "
        "pressure below becomes too high, it erupts.",
    ),
    (
        "How do I plan a small party?",
        "Make a list of guests first, then decide on food and music. Ask a friend to help you on "
        "the day so that you can enjoy it too.",
    ),
    (
        "My back hurts after work.",
        "Stand up every half hour and stretch a little. Check the height of your chair as well, "
        "because your feet should rest flat on the floor.",
    ),
    (
        "What is a good breakfast?",
        "Oats with fruit and yoghurt keep you full for a long time. If you are in a hurry, a "
        "banana and a slice of bread will do.",
    ),
    (
        "Why do leaves fall in autumn?",
        "Trees save water and energy in the cold months. They take back what they can use and let "
        "the leaves go.",
    ),
    (
        "Write a sentence about the sea.",
        "The sea was calm that evening, and the last light lay on it like a sheet of copper.",
    ),
    (
        "How can I learn new words in a foreign language?",
        "Learn ten words a day and use each of them in a sentence of your own. Repeat them after "
        "one day, after three days and after a week.",
    ),
    (
        "I argued with a neighbour.",
        "That is unpleasant. Wait until both of you are calm, then explain what bothers you and "
        "ask how the other side sees it.",
    ),
    (
        "What is the heart for?",
        "The heart pumps blood through the body. The blood carries oxygen to every part and takes "
        "waste away.",
    ),
    (
        "Give me a tip for better photographs.",
        "Look for soft light, early in the morning or late in the day. Then take one step closer "
        "than you first wanted to.",
    ),
    (
        "How do I cook rice?",
        "Use two cups of water for one cup of rice. Bring it to the boil, turn the heat down, "
        "cover the pot and wait about fifteen minutes.",
    ),
    (
        "Is it healthy to drink a lot of water?",
        "Most adults do well with six to eight glasses a day. Drink more when it is hot or when "
        "you exercise.",
    ),
    (
        "What does a lawyer do?",
        "A lawyer knows the rules of a country and advises people about them. Many lawyers also "
        "speak for their clients in court.",
    ),
    (
        "I cannot concentrate today.",
        "Put away everything you do not need and work for only twenty minutes. After a short "
        "break the next twenty minutes will be easier.",
    ),
    (
        "How are mountains made?",
        "Large plates of rock press against each other very slowly. Where they meet, the ground "
        "is folded and lifted over millions of years.",
    ),
    (
        "Suggest a name for a small bakery.",
        "You could call it The Warm Crust. It is short, friendly, and everybody knows at once "
        "what you sell.",
    ),
    (
        "How should I store potatoes?",
        "Keep them in a dark, cool and dry place. Do not put them next to onions, because both "
        "spoil faster together.",
    ),
    (
        "What is a haiku?",
        "A haiku is a very short poem from Japan. It has three lines and often speaks about "
        "nature.",
    ),
    (
        "Tell me how to wrap a round gift.",
        "Lay it in the middle of the paper and gather the corners above it. Tie them with a "
        "ribbon, and the folds will look like a flower.",
    ),
    (
        "Why is sleep important?",
        "While we sleep the body repairs itself and the brain sorts what it has learned. Without "
        "it we become slow and forgetful.",
    ),
    (
        "I want to grow herbs at home.",
        "Begin with basil and mint on a sunny window sill. Water them when the top of the soil is "
        "dry, and cut them often.",
    ),
    (
        "What is inflation?",
        "Inflation means that prices rise over time. With the same money you can then buy a "
        "little less than before.",
    ),
    (
        "How do I ask for a higher salary?",
        "Collect examples of what you have done well this year. Ask for a meeting, name a clear "
        "number, and explain why it is fair.",
    ),
    (
        "Which animals live in the desert?",
        "Camels, snakes, lizards and many insects live there. They need little water and often "
        "hide from the heat during the day.",
    ),
    (
        "My suitcase is always too heavy.",
        "Write a list and cross out a third of it. Choose clothes that go together, and wear the "
        "heaviest shoes on the journey.",
    ),
    (
        "How does a refrigerator work?",
        "A liquid turns to gas inside the walls and takes heat away from the food. Outside, the "
        "gas is pressed back into a liquid and gives that heat off.",
    ),
    (
        "What makes a good listener?",
        "A good listener does not interrupt and does not rush to give advice. Short questions "
        "show that you follow what is said.",
    ),
    (
        "Describe a forest in one sentence.",
        "Tall trunks stand close together, the ground is soft with needles, and somewhere above a "
        "bird is singing.",
    ),
    (
        "How can I use less electricity?",
        "Switch devices off completely, use lamps that need little power, and wash clothes at a "
        "lower temperature. Small steps add up over a year.",
    ),
    (
        "What is the difference between a fruit and a vegetable?",
        "A fruit grows from the flower of a plant and holds its seeds. Vegetables are other "
        "parts, such as roots, stems or leaves.",
    ),
    (
        "I am afraid of flying.",
        "Many people are. Choose a seat above the wing, where it is calmest, breathe slowly, and "
        "bring something that takes your mind off it.",
    ),
    (
        "How do I clean a window without streaks?",
        "Use warm water with a little vinegar and wipe from top to bottom. Dry the glass at once "
        "with a clean cloth.",
    ),
    (
        "Why does ice float?",
        "Water grows a little when it freezes. The same amount of ice therefore weighs less than "
        "the water it pushes away.",
    ),
    (
        "Can you recommend a hobby?",
        "Drawing is a good one, because you only need paper and a pencil. Ten minutes a day are "
        "enough to see progress.",
    ),
    (
        "What should I know before I adopt a pet?",
        "Ask yourself how much time and space you have every day. Food and visits to the vet cost "
        "money, and a pet stays with you for years.",
    ),
    (
        "How do bridges stay up?",
        "A bridge passes its weight on to pillars and banks. Arches press outwards, and cables "
        "pull upwards, so that no part carries too much.",
    ),
    (
        "Give me an idea for a quick dinner.",
        "Boil some pasta and warm olive oil with garlic in a pan. Mix both, add cheese and "
        "pepper, and dinner is ready.",
    ),
    (
        "What is a metaphor?",
        "A metaphor says that one thing is another in order to show what they have in common. To "
        "call time a thief is an example.",
    ),
    (
        "My houseplant has yellow leaves.",
        "Most often it gets too much water. Let the soil dry, make sure that the pot has a hole, "
        "and move it closer to the light.",
    ),
    (
        "How long does it take to learn the piano?",
        "Simple songs are possible after a few months. To play freely takes most people several "
        "years of regular practice.",
    ),
    (
        "Why do cats purr?",
        "Cats often purr when they feel safe and content. They also do it when they are hurt, "
        "perhaps to calm themselves.",
    ),
    (
        "Help me apologise for being late.",
        "You could say that you are sorry for making them wait and that you should have left "
        "earlier. Then promise to be on time, and keep it.",
    ),
    (
        "What is recycling?",
        "Recycling means that used things become material for new ones. Glass, paper and metal "
        "can be used again many times.",
    ),
    (
        "How do I fold a fitted sheet?",
        "Tuck two corners into the other two, so that the edges lie together. Place it on a "
        "table, fold in the sides, and roll up the rest.",
    ),
    (
        "What do I need for a picnic?",
        "Take a blanket, water, bread, cheese and fruit. A small knife and a bag for the rubbish "
        "are easy to forget.",
    ),
    (
        "Why is the sea salty?",
        "Rain washes salts out of the rocks, and rivers carry them to the sea. The water leaves "
        "as vapour, but the salt stays behind.",
    ),
    (
        "I have too many e-mails.",
        "Answer what takes less than two minutes at once and move the rest to a list. Leave every "
        "newsletter that you have not read for a month.",
    ),
    (
        "How does a vaccine work?",
        "It shows the body a harmless part of a germ. The body learns to recognise it and can "
        "react quickly when the real one appears.",
    ),
    (
        "Tell me a fact about elephants.",
        "Elephants greet each other after a long time apart with loud calls and touching trunks. "
        "They can hear very low sounds from far away.",
    ),
    (
        "How can I stop biting my nails?",
        "Notice when you do it and keep your hands busy with something else. Short nails and a "
        "bitter polish also help.",
    ),
    (
        "What is a healthy snack for the office?",
        "A handful of nuts, an apple or some carrots are good choices. They keep well and do not "
        "make you tired.",
    ),
    (
        "How do I write a good title?",
        "Say what the text is about in as few words as you can. Put the most important word first "
        "and leave out everything that is obvious.",
    ),
    (
        "Why do we yawn?",
        "Nobody knows for certain. It may cool the brain or keep us awake, and it is easily "
        "passed on from one person to another.",
    ),
    (
        "I spilled water on my keyboard.",
        "Unplug it at once and turn it over. Let it dry for two days in a warm place before you "
        "try it again.",
    ),
    (
        "What is democracy?",
        "In a democracy the people choose who governs them. They vote regularly, and the laws "
        "apply to everybody.",
    ),
    (
        "How do I choose a ripe melon?",
        "Press the end gently and smell it. A ripe melon gives a little, smells sweet, and feels "
        "heavy for its size.",
    ),
)

ORDINARY: tuple[tuple[tuple[str, str], ...], ...] = (
    (
        (
            "How can I fall asleep faster?",
            "Go to bed at the same time every day, keep the room dark and cool, and put your "
            "phone away an hour before you sleep.",
        ),
        (
            "I drink coffee in the evening.",
            "That may be part of the problem. Coffee can keep you awake for many hours, so try to "
            "have your last cup early in the afternoon.",
        ),
    ),
    (
        (
            "What should I cook with eggs and potatoes?",
            "You could make a Spanish omelette. Fry thin slices of potato until they are soft, "
            "add beaten eggs, and cook it slowly on both sides.",
        ),
        ("Can I add onions?", "Yes, onions make it sweeter. Cook them together with the potatoes."),
    ),
    (
        (
            "Why is the sky blue?",
            "Sunlight is scattered by the air, and blue light is scattered more than red light. "
            "That is why we see blue from all directions.",
        ),
        (
            "And why is it red in the evening?",
            "In the evening the light travels a longer way through the air. Most of the blue "
            "light is lost on the way, and the red light is left.",
        ),
    ),
    (
        (
            "I want to start running.",
            "Start slowly. Run for one minute and walk for two, and repeat this for twenty "
            "minutes, three times a week.",
        ),
        (
            "What shoes do I need?",
            "Choose light running shoes that leave a little room for your toes. A sports shop can "
            "help you find the right size.",
        ),
    ),
    (
        (
            "Write a short thank-you note to a teacher.",
            "Dear teacher, thank you for your patience and your kind words this year. I have "
            "learned a lot from you.",
        ),
        ("Make it shorter.", "Thank you for everything you taught me this year."),
    ),
    (
        (
            "How do plants make food?",
            "Plants use sunlight, water and carbon dioxide to make sugar. This is called "
            "photosynthesis, and it also produces oxygen.",
        ),
    ),
    (
        (
            "My computer is very slow.",
            "Close the programs you do not need, restart the computer, and check whether the disk "
            "is almost full.",
        ),
        (
            "The disk is full.",
            "Then delete files you no longer need, empty the bin, or move your photos to another "
            "drive.",
        ),
    ),
    (
        (
            "What is the difference between weather and climate?",
            "Weather is what happens in the air today or this week. Climate is the usual weather "
            "of a place over many years.",
        ),
    ),
    (
        (
            "I am nervous about a job interview.",
            "That is normal. Read about the company, practise your answers aloud, and prepare two "
            "questions of your own.",
        ),
        (
            "What should I wear?",
            "Wear something clean and simple that you feel good in. It is better to be a little "
            "too formal than too casual.",
        ),
    ),
    (
        (
            "Tell me something about the moon.",
            "The moon travels around the Earth in about twenty-seven days. It has no air, and its "
            "gravity is much weaker than ours.",
        ),
        (
            "Do people live there?",
            "No, nobody lives on the moon. A few astronauts have visited it for some days.",
        ),
    ),
    (
        (
            "How can I save money on food?",
            "Plan your meals for the week, write a shopping list, and cook larger portions that "
            "you can eat on two days.",
        ),
    ),
    (
        (
            "My friend is sad. What can I say?",
            "You can say that you are there and that you are happy to listen. Often it helps more "
            "to listen than to give advice.",
        ),
        (
            "Should I visit her?",
            "Ask her first whether she would like company. A short visit or a walk together may "
            "be good for her.",
        ),
    ),
    (
        (
            "What is a good gift for a gardener?",
            "A pair of good gloves, a small hand tool, or seeds of an unusual flower would be "
            "nice gifts.",
        ),
    ),
    (
        (
            "Explain what a budget is.",
            "A budget is a plan for your money. It shows how much you earn, how much you spend, "
            "and what is left to save.",
        ),
        (
            "How do I begin?",
            "Write down everything you spend for one month. Then sort it into groups and decide "
            "where you can spend less.",
        ),
    ),
    (
        ("Translate good morning into Spanish.", "Good morning in Spanish is buenos dias."),
        ("And good night?", "Good night in Spanish is buenas noches."),
    ),
    (
        (
            "Why do we have leap years?",
            "The Earth needs about 365 and a quarter days to travel around the sun. An extra day "
            "every four years keeps the calendar in step.",
        ),
    ),
)  # fmt: skip
