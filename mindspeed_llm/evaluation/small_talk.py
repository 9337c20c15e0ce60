"""Owns ordinary talk, which needs no memory: questions to practise on and conversations to test
with; it does not know what becomes of them.

Tuning on nothing but memory dialogues makes a small model forget how to talk. The model's own
replies to `PRACTICE` are mixed into the training rows; `ORDINARY` shares no question with it and
measures what was lost.
"""

from __future__ import annotations

PRACTICE: tuple[str, ...] = (
    "How do I remove a coffee stain from a shirt?",
    "Why does bread rise?",
    "I would like to read more books.",
    "What can I do on a rainy Sunday?",
    "Explain what a volcano is.",
    "How do I plan a small party?",
    "My back hurts after work.",
    "What is a good breakfast?",
    "Why do leaves fall in autumn?",
    "Write a sentence about the sea.",
    "How can I learn new words in a foreign language?",
    "I argued with a neighbour.",
    "What is the heart for?",
    "Give me a tip for better photographs.",
    "How do I cook rice?",
    "Is it healthy to drink a lot of water?",
    "What does a lawyer do?",
    "I cannot concentrate today.",
    "How are mountains made?",
    "Suggest a name for a small bakery.",
    "How should I store potatoes?",
    "What is a haiku?",
    "Tell me how to wrap a round gift.",
    "Why is sleep important?",
    "I want to grow herbs at home.",
    "What is inflation?",
    "How do I ask for a higher salary?",
    "Which animals live in the desert?",
    "My suitcase is always too heavy.",
    "How does a refrigerator work?",
    "What makes a good listener?",
    "Describe a forest in one sentence.",
    "How can I use less electricity?",
    "What is the difference between a fruit and a vegetable?",
    "I am afraid of flying.",
    "How do I clean a window without streaks?",
    "Why does ice float?",
    "Can you recommend a hobby?",
    "What should I know before I adopt a pet?",
    "How do bridges stay up?",
    "Give me an idea for a quick dinner.",
    "What is a metaphor?",
    "My houseplant has yellow leaves.",
    "How long does it take to learn the piano?",
    "Why do cats purr?",
    "Help me apologise for being late.",
    "What is recycling?",
    "How do I fold a fitted sheet?",
    "What do I need for a picnic?",
    "Why is the sea salty?",
    "I have too many e-mails.",
    "How does a vaccine work?",
    "Tell me a fact about elephants.",
    "How can I stop biting my nails?",
    "What is a healthy snack for the office?",
    "How do I write a good title?",
    "Why do we yawn?",
    "I spilled water on my keyboard.",
    "What is democracy?",
    "How do I choose a ripe melon?",
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
