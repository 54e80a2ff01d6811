"""What is done to each of many blocks or slots, as loops over columns. Importing a part of it takes numba, some tenths of a second;
tiering.kernels compiles what is here when it is first needed.

Columns are those of tiering.residency, by tier with a row each; what a loop answers in, or changes, its owner hands it. Ids and slots
are whatever their owners have checked: no loop looks whether they are within bounds.
"""
