"""What a teacher says of a data set: computed once, kept on disk, read in training.

cache.py        TeacherCache: build, open, batches
building.py     makes what is missing of the files
labelling.py    the pass over the data
predictions.py  outputs that were made elsewhere
batches.py      batches with the outputs beside them
views.py        augmentation as a function of (example, view)
keys.py         examples known by their content
shards.py       files, each whole or absent, read by memory map
document.py     what a cache was made from
remote.py       RemoteTeacher: labels made on the workers of a tf.data service
"""

from tfkd.teacher_cache.cache import TeacherCache
from tfkd.teacher_cache.remote import RemoteTeacher

__all__ = ["RemoteTeacher", "TeacherCache"]
