"""The benchmark's fixed numbers and what follows from them. Nothing here is meant to be tuned."""

# Trajectory of the agent (NAVSIM: TrajectorySampling(time_horizon=4, interval_length=0.5)).
HORIZON_S = 4.0
POSE_INTERVAL_S = 0.5
NUM_POSES = 8  # HORIZON_S / POSE_INTERVAL_S
NUM_POSE_FIELDS = 3  # x [m], y [m], heading [rad]
ANSWER_LENGTH = NUM_POSES * NUM_POSE_FIELDS  # 24 action tokens

# Simulation grid of the PDM scorer (NAVSIM: proposal_sampling, 40 poses of 0.1 s).
SIM_INTERVAL_S = 0.1
NUM_SIM_STEPS = 40
NUM_SIM_STATES = NUM_SIM_STEPS + 1

# Logs (NAVSIM SceneFilter defaults).
FRAME_INTERVAL_S = 0.5
NUM_HISTORY_FRAMES = 4  # the last one is the current frame
NUM_FUTURE_FRAMES = 10
CAMERA_NAMES = ("CAM_F0", "CAM_L0", "CAM_L1", "CAM_L2", "CAM_R0", "CAM_R1", "CAM_R2", "CAM_B0")
IMAGE_WIDTH_PX = 1920
IMAGE_HEIGHT_PX = 1080
DRIVING_COMMANDS = ("left", "straight", "right", "unknown")  # order of the one-hot

# Ego vehicle "pacifica" (nuplan/common/actor_state/vehicle_parameters.py) [m].
EGO_WIDTH_M = 2.297
EGO_FRONT_LENGTH_M = 4.049  # rear axle to front bumper
EGO_REAR_LENGTH_M = 1.127  # rear axle to rear bumper
EGO_LENGTH_M = EGO_FRONT_LENGTH_M + EGO_REAR_LENGTH_M  # 5.176
EGO_REAR_AXLE_TO_CENTER_M = 1.461
EGO_WHEEL_BASE_M = 3.089
EGO_HEIGHT_M = 1.777

# Box types, in the order NAVSIM sorts tracked objects by.
TRACK_TYPES = ("vehicle", "pedestrian", "bicycle", "traffic_cone", "barrier", "czone_sign", "generic_object")
AGENT_TYPES = ("vehicle", "pedestrian", "bicycle")  # these have a velocity; the others are static objects

# The four cities of nuPlan: map name -> (map version, projected CRS). nuPlan maps v1.0.
MAP_VERSIONS = {
    "sg-one-north": "9.17.1964",
    "us-ma-boston": "9.12.1817",
    "us-nv-las-vegas-strip": "9.15.1915",
    "us-pa-pittsburgh-hazelwood": "9.17.1937",
}
MAP_CRS = {
    "sg-one-north": "EPSG:32648",
    "us-ma-boston": "EPSG:32619",
    "us-nv-las-vegas-strip": "EPSG:32611",
    "us-pa-pittsburgh-hazelwood": "EPSG:32617",
}
