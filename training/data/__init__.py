"""Where pictures come from, the cache, the split, augmentation, and a first look at them."""
