package configs

// Nearest returns the word of a list that a misspelt one most likely meant,
// or "" when none is near: at most one edit, another for every three letters,
// and three in all, where an edit inserts, drops or changes a letter or swaps
// two neighbours.
func Nearest(word string, list []string) string {
	best, distance := "", min(len(word)/3+1, 3)
	for _, w := range list {
		if d := edits(word, w, distance); d < distance || d == distance && best == "" {
			best, distance = w, d
		}
	}
	return best
}

// edits counts the edits between two words, and gives up above limit.
func edits(a, b string, limit int) int {
	if d := len(a) - len(b); d > limit || -d > limit {
		return limit + 1
	}
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}
