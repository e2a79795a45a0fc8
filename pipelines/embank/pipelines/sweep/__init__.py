"""Many runs side by side: methods, budgets and seeds, a leaderboard, and AUC against bytes."""
