"Mutation testing of the backward functions: which functions, which faults, how a mutant is tried."
