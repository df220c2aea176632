from .benchmark import bench as bench
from .comparison import compare as compare
from .memory import peak_memory as peak_memory
from .node_profile import profile as profile
