"""Images with boxes: data sets, readers of annotations, batches and augmentation."""
