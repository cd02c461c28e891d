"""Object-detection data: data sets, annotation readers, batches and augmentation."""
