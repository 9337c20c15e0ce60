"""Owns ordinary talk, which needs no memory: questions to practise on and conversations to test
with; it does not know what becomes of them.

Tuning on nothing but memory dialogues makes a small model forget how to talk. The model's own
replies to `PRACTICE` and the conversations of `service_talk` are mixed into the training rows;
`ORDINARY` shares nothing with them and measures what was lost.
"""

from __future__ import annotations

import random

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


# Conversations with a service: a user, a bar, the reply; what is in braces is drawn.
_SERVICES = """
I need a table for {n} tonight. | Which part of the city do you prefer?
Somewhere near {place}, please. | What time would you like to eat?
At {time}. | {shop} has a table at {time}. Shall I book it for you?
Yes, please. | Your table for {n} at {shop} is booked. Is there anything else I can do?
No, that is all. | Enjoy your evening.

Can you find me a hotel with a pool? | Sure. Which town would you like to stay in?
In {city}, from {day} on. | How many nights will you stay?
{n} nights. | {shop} has a pool and a free room. It costs {price} euros a night.
Does that include breakfast? | Yes, breakfast is included.
Then book it, please. | Done. You have a room at {shop} in {city} for {n} nights from {day}.

When does the next bus to {city} leave? | It leaves at {time} from the main station.
How long does it take? | The ride takes about {n} hours.
What is the price? | A ticket costs {price} euros. How many tickets do you need?
Just one. | I have booked one ticket to {city} for you. The bus leaves at {time}.

I want to see a film on {day}. | What kind of film would you like to see?
Something funny. | There is a comedy at {shop} on {day} at {time}.
Where is that? | {shop} is close to {place}.
Please get me {n} tickets. | I have {n} tickets for you. They cost {price} euros together.
Thank you very much. | You are welcome. Have a good time.

My tooth hurts. I need a dentist. | I am sorry to hear that. Where are you?
In {city}. | I found {n} dentists in {city}. Doctor {name} has very good reviews.
Can I go there on {day}? | Yes, Doctor {name} is free at {time}. Should I make an appointment?
Yes, thanks. | Your appointment with Doctor {name} is on {day} at {time}.

I would like to rent a car in {city}. | When do you want to pick it up?
On {day} at {time}. | When will you return it?
{n} days later. | What kind of car do you need?
A small one is enough. | A small car costs {price} euros a day. Shall I reserve it?
No, I will think about it. | All right. Can I help you with anything else?

Please set up a meeting with {name}. | On which day should it be?
On {day}. | {name} is free on {day} at {time}. Is that good for you?
Yes, that works. | The meeting with {name} is on {day} at {time}. It is in your calendar.
Is there something else on that day? | No, you have nothing else on {day}.

What will the weather be like in {city} on {day}? | It will be sunny, with about {n} degrees.
Is it going to rain? | The chance of rain is {n} percent.
And the wind? | There will be a light wind from the west.

I have to send money to {name}. | How much would you like to send?
{price} euros. | From which account should I take it, checking or savings?
Checking, please. | You want to send {price} euros from checking to {name}. Is that correct?
Yes, that is right. | The money is on its way. Do you need anything else?
No, goodbye. | Have a great day.

Play some quiet music, please. | Do you have a singer in mind?
Something by {name}. | How about the song about {city}?
Good. Play it in the kitchen. | I will play the song about {city} in the kitchen. Please confirm.
Yes, go ahead. | The song is playing now.

I am looking for a flat with two bedrooms in {city}. | How much rent can you pay a month?
Up to {price} euros. | I found {n} flats. One of them is near {place} and has a balcony.
Are pets allowed? | Yes, pets are allowed.
Can I visit it on {day}? | Yes. Your visit is on {day} at {time}.

I need a haircut before {day}. | Which town are you in, please?
I am in {city}. | {shop} in {city} has a free place at {time}.
What is their phone number? | Their number is {phone}.
Great, thank you. | My pleasure.

Find me a train to {city} for {day}. | At what time do you want to travel?
Around {time}. | There is a direct train at {time}. It costs {price} euros.
Can I change the ticket later? | Yes, this ticket can be changed.
Buy it for me. | How many people are travelling?
Only me. | I have bought one ticket to {city} on {day} at {time}.

What can I see in {city} with children? | {shop} is a good museum for children.
Do we have to pay? | No, it is free for everyone.
Is there a park as well? | Yes, there is a large park near {place}.
What is the address? | It is {n} {place}, {city}.

I would like to order a pizza from {shop}. | What size do you want?
A large one, please. | One large pizza from {shop}. It costs {price} euros. Is that right?
Yes, it is. | Your order is placed. It will be there in {n} minutes.

My order has not arrived. | I am sorry about that. What is your order number?
It is {phone}. | Thank you. Your order was sent on {day} and should arrive at {time}.
And if it does not? | Then please call {phone} and we will send another one.
All right, I will wait. | Thank you for your patience.

Is there a concert in {city} this month? | Yes, {name} plays at {shop} on {day}.
When does it start? | The concert starts at {time}.
Are there tickets left? | There are {n} tickets left at {price} euros each. Do you want one?
I will take {n}. | I have bought {n} tickets for {name} on {day}.

I need a cab to {place}. | How many people will ride with you?
We are {n}. | Do you want to share the ride with others?
No, we do not. | Your ride to {place} costs {price} euros. The driver will be there at {time}.
What is the driver called? | Your driver is {name}.

Please find a flight to {city}. | When would you like to leave?
On {day}, and I come back {n} days later. | There is a flight on {day} at {time} for {price} euros.
Is it direct? | No, there is one stop.
Are there any others? | I am sorry, there are no other flights on that day.

What do I have to do on {day}? | You have lunch with {name} at {time}. The rest of the day is free.
And on the day after? | There is nothing in your calendar yet.
Then put a visit to {place} there. | At what time should it begin?
At {time}. | It is in your calendar, from {time} on.

I feel like watching something tonight. | Do you prefer something new or a classic?
A classic, maybe with {name}. | How about "The Road to {city}"? It has {name} in the leading part.
I have seen that one. | Then I suggest "A Night in {city}".
That sounds nice. With subtitles, please. | It starts now, with subtitles. Have fun!

Can I still get a room in {city} for the weekend? | I am afraid not. Would {day} be possible?
That is fine as well. | In that case there are {n}, and {shop} is the cheapest.
Tell me more about it. | It is at {place}, and guests rate it 4.2 out of 5.
Do they take dogs? | Unfortunately they do not.

My internet has been down since {time}. | That is annoying. Is its light red or green?
It is red. | Please unplug the box, wait for {n} seconds and plug it in again.
Now it is green. | Very good. Then everything should work. Can I do anything else for you?
No, it works. Thanks a lot. | Glad to hear it. Goodbye!

How much money is left in my account? | You have {price} euros, and more in savings.
Move {n} euros to savings. | From checking to savings, {n} euros. Shall I go on?
Please do. | That is done.

I would like to see a doctor about my skin. | Doctor {name} in {city} is one. Shall I ask?
Is there anybody closer to {place}? | Yes, there is Doctor {name} at {shop}. The number is {phone}.
Good, try to get me in on {day}. | What time suits you best?
Any time after {time}. | I am sorry, there was nothing after {time}. Would an earlier time do?

Are there seats left for the match on {day}? | Yes, at {price} or 25 euros. Which ones do you want?
The cheaper ones. | How many?
For {n} people. | Wonderful, {n} seats on {day}. You will get them by e-mail.

I want to send flowers to {city}. | With pleasure. When should they arrive?
On {day} before {time}. | And which colours do you like?
I leave that to you. | Then we choose something bright. That makes {price} euros altogether.

Which bus goes to {place}? | Line {n} does. It comes every ten minutes.
Where do I get off? | At {place}, it is the last stop.
Is it far to walk? | It would take you about half an hour.

Where can we eat outside? | {shop} has a garden. Their food is not expensive.
What kind of food is it? | They are known for fish and for their vegetables.
Could you get us a table at {time}? | For how many people and for which day?
On {day}, we will be {n}. | They are full at {time}. Should I try a different time?
Try one hour later. | That worked. You have a table one hour later.

I want to swim somewhere in {city}. | There is a pool at {place}, it is open until {time}.
What does it cost? | Adults pay 6 euros, children pay half.
Do I need to bring a lock? | Yes, please bring your own lock.

Where is the parcel that I sent to {name}? | It left {city} on {day} and is on its way.
When will it be there? | Most likely on {day}, by {time}.
Please tell me when it is. | Of course. I will let you know as soon as it has arrived.

I think of learning Italian. | We have courses for beginners on {day} and on weekends.
How long is a course? | Ten lessons of ninety minutes each.
And who teaches it? | {name}, who has taught it for many years.
Put me down for it. | You are on it. The first lesson is at {time}.

Wake me tomorrow at {time}. | Your alarm is set for {time}.
No, make it an hour earlier. | All right, I have changed it.
What else is planned for the morning? | Only the call with {name}.

We need a van to move to {city}. | For how long would you need it?
For {n} hours on {day}. | There is one at {place}. It costs {price} euros with insurance.
Is insurance needed? | It is not, but I would recommend it.
Then with insurance. | The van is reserved. You can fetch it from {time} on.

Can you recommend a museum near {place}? | {shop} shows paintings and is open every day.
Is it crowded? | On {day} it is quiet in general.
Can we take photos there? | Photos are allowed, but without flash.
That is all I wanted to know. | It was a pleasure. Enjoy your visit!

The heating in my room does not work. | I apologise. Which floor are you on?
On the third, next to the stairs. | Someone will be with you in {n} minutes.
Could I have another blanket until then? | Certainly, we will bring one right away.

Please read me my new messages. | You have one from {name}, who will be late on {day}.
Answer that it is no problem. | I have written: "No problem." Is that what you want to send?
Yes, send it. | It has been sent.
"""
_FIELDS: dict[str, tuple[str, ...]] = {
    "n": ("two", "three", "four", "five", "6", "8", "12", "15", "20"),
    "day": ("Monday", "Tuesday", "Wednesday", "Saturday", "the 3rd", "March 5th", "next Friday",
            "tomorrow", "the 14th of this month"),
    "time": ("7 pm", "half past eight", "11:30 am", "5 in the afternoon", "noon", "6:15 pm",
             "quarter to nine", "10 am", "3:45 pm"),
    "city": ("Portland", "Leeds", "Marseille", "San Diego", "Krakow", "Vancouver", "Bath", "Denver",
             "Salzburg", "New York"),
    "place": ("the harbour", "Mill Street", "the old bridge", "Oak Avenue", "the town hall",
              "Fourth Street", "the airport", "Park Lane"),
    "shop": ("The Blue Boat", "Casa Verde", "Corner House", "Golden Lion", "Riverside Inn",
             "Luigi's", "Star Palace", "The Green Door", "Northern Lights", "Happy Garden"),
    "name": ("Carter", "Ms. Lindqvist", "Anita Rao", "Mr. Okafor", "Walsh", "Dana Petit",
             "Professor Hall", "Mia Tanaka"),
    "price": ("35", "48", "60", "85", "110", "140", "275", "320"),
    "phone": ("555-0142", "020 7946 0018", "415-555-0177", "01632 960 224"),
}  # fmt: skip


def service_talk(count: int, rng: random.Random) -> list[tuple[tuple[str, str], ...]]:
    """`count` conversations with a service, in (user, assistant) turns; each form equally often."""
    forms = _SERVICES.strip().split("\n\n")
    order = [form for _ in range(count // len(forms) + 1) for form in rng.sample(forms, len(forms))]
    found: list[tuple[tuple[str, str], ...]] = []
    for form in order[:count]:
        words = {name: rng.choice(values) for name, values in _FIELDS.items()}
        pairs = (line.format(**words).split(" | ") for line in form.splitlines())
        found.append(tuple((user[:1].upper() + user[1:], reply[:1].upper() + reply[1:])
                           for user, reply in pairs))  # fmt: skip
    return found
