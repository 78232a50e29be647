"""The only home of outside engines (HTTP, CLIP, heads, k-NN); none knows a dataset's layout."""
