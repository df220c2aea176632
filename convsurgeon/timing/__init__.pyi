from convsurgeon.timing.benchmark import bench as bench
from convsurgeon.timing.comparison import compare as compare
from convsurgeon.timing.memory import peak_memory as peak_memory
from convsurgeon.timing.node_profile import profile as profile
