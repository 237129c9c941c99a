# Text only: the engine links it without the models' arithmetic.
add_library(molmo_points molmo_points.cc molmo_points.h)
target_link_libraries(molmo_points PUBLIC base)
