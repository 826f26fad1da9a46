"""The field's data-free methods, each a small synthesiser written from its paper.

They differ from GenKD in how images come about and in nothing else: the bank, the student and its
learning, the budget and the report are shared. Which one runs is the recipe key `method`.
"""
