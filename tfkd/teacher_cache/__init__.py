"""Teacher cache: teacher outputs (soft targets, features) computed once and kept on disk.

cache.py        TeacherCache: build, open, batches
building.py     creates the missing shards of a cache
labelling.py    runs the teacher over the data
predictions.py  imports outputs that were computed elsewhere
batches.py      tf.data batches with the teacher's outputs
views.py        augmentation as a function of (example, view)
keys.py         content hashes that identify examples
shards.py       memory-mapped .npy files, written atomically
document.py     cache.json: the origin and layout of a cache
remote.py       RemoteTeacher: a teacher on the workers of a tf.data service
"""

from tfkd.teacher_cache.cache import TeacherCache
from tfkd.teacher_cache.remote import RemoteTeacher

__all__ = ["RemoteTeacher", "TeacherCache"]
